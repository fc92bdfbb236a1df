"""A model that another process computes."""

from __future__ import annotations

from dataclasses import dataclass, field

from yolo_assigner.export.contract import Contract
from yolo_assigner.serve.engine.job_queue import BatchLimits
from yolo_assigner.serve.engine.stats import ModelStats


@dataclass
class RemoteModel:
    """What is known here of a model that is computed elsewhere.

    Attributes:
        contract: What it takes and gives.
        limits: How far requests are put together.
        ready: It can be used.
        platform: What runs it, by Triton's names.
        merges: Requests are put together.
        stats: What it has done, also in earlier processes.
    """

    contract: Contract
    limits: BatchLimits
    ready: bool = False
    platform: str = ""
    merges: bool = False
    stats: ModelStats = field(default_factory=ModelStats)
