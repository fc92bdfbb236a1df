"""What a service is to be, in whichever process."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from yolo_assigner.serve.compute.local import LocalService
from yolo_assigner.serve.engine.job_queue import BatchLimits
from yolo_assigner.serve.engine.registry import open_artifacts
from yolo_assigner.serve.engine.runners.choice import RunnerOptions
from yolo_assigner.serve.shared.cuda import Gpus
from yolo_assigner.serve.shared.regions import Regions
from yolo_assigner.serve.tensors.buffers import GRAIN


class Setup(NamedTuple):
    """What a service is to be.

    Attributes:
        artifacts: Folder of the models.
        runners: What is to run them.
        limits: How far requests are put together.
        max_work_bytes: Most memory that a request may need while it is computed.
        engine_timeout: Seconds that one call of an engine may take, 0 for ever.
        shared_memory: What names of callers' shared memory begin with; None: switched off.
        cuda_shared_memory: Whether it may be on GPUs.
        max_request_bytes: Most bytes of the inputs of a request in shared memory.
        max_total_bytes: Most bytes of those of all requests.
        log_level: Least level that is logged.
        log_format: text or json.
        models: Names of the models that callers have been told of; None: any.
        failures: Names of models that are not to be loaded, each with the reason.
        regions: Those that an earlier process had; None: none.
    """

    artifacts: Path
    runners: RunnerOptions
    limits: BatchLimits
    max_work_bytes: int
    engine_timeout: float
    shared_memory: str | None
    cuda_shared_memory: bool
    max_request_bytes: int
    max_total_bytes: int
    log_level: str
    log_format: str
    models: tuple[str, ...] | None = None
    failures: tuple[tuple[str, str], ...] = ()
    regions: bytes | None = None

    @property
    def keep_bytes(self) -> int:
        """Most bytes of idle memory that are kept: the largest body, aligned."""
        return self.max_request_bytes + GRAIN


def service_of(setup: Setup) -> LocalService:
    """The service that a setup describes.

    Raises:
        ValueError: It cannot be.
    """
    regions = regions_of(setup)
    registry = open_artifacts(setup.artifacts, setup.runners, setup.limits)
    return LocalService(registry, regions, setup.max_work_bytes, setup.keep_bytes)


def regions_of(setup: Setup) -> Regions | None:
    """The shared memory of a setup; None: switched off.

    Raises:
        ValueError: It cannot be.
    """
    gpus = Gpus() if setup.cuda_shared_memory else None
    if setup.shared_memory is None and gpus is None:
        return None
    return Regions(setup.shared_memory, setup.max_request_bytes, setup.max_total_bytes, gpus)
