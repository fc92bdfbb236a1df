"""A small client: maps and a batch in, NamedTuples of numpy arrays out.

Takes numpy arrays or torch tensors (torch is not imported), talks binary tensors through ``tritonclient``::

    with AssignerClient("localhost:8000") as client:
        result = client.loss(feats, {"batch_idx": ..., "cls": ..., "bboxes": ...})
        criterion = client.criterion()  # for training with torch
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from geventhttpclient.response import HTTPParseError
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from serve.ragged import pad_ground_truth
from serve.results import Array, AssignmentResult, LossAndGradients, LossResult
from serve.targets import COMPACT, complete_targets

if TYPE_CHECKING:
    from serve.remote_loss import RemoteDetectionLoss

LOSS_OUTPUTS = ("loss", "loss_items", "image_sums")


class ServerError(RuntimeError):
    """The server refused or could not be reached; the text is its reason.

    Attributes:
        status: HTTP status, None when there was no reply.
    """

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


class AssignerClient:
    """A connection to a server. Use one per thread.

    Args:
        url: ``host:port``, with or without ``http://``, or ``https://host:port`` for TLS.
        half: Send maps and scores as FP16: half the bytes, three digits. Boxes and points always go as FP32, since FP16
            has steps of half a pixel above 512.
        strides: Pixels per cell of the served loss model's levels; the first gives the image size.
        timeout: Seconds to wait for the connection and for each reply.
        key: Where the server wants one.
        ca_file: PEM file of the authority that signed the server's certificate; None: those that are widely trusted.

    Raises:
        ValueError: The file cannot be used, or was given without TLS.
    """

    def __init__(
        self,
        url: str,
        *,
        half: bool = False,
        strides: Sequence[int] = (8, 16, 32),
        timeout: float = 60.0,
        key: str | None = None,
        ca_file: str | Path | None = None,
    ) -> None:
        self._url, address = url.rstrip("/"), url.removeprefix("http://").removeprefix("https://").rstrip("/")
        self._scores_type = np.dtype(np.float16 if half else np.float32)
        self._stride = strides[0]
        self._headers = {"Authorization": f"Bearer {key}"} if key else None
        self._http = InferenceServerClient(
            address, connection_timeout=timeout, network_timeout=timeout, **_tls(url, ca_file)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def loss(
        self, feats: Sequence[Any], batch: Mapping[str, Any], *, model: str = "loss", outputs: Sequence[str] = ()
    ) -> LossResult:
        """The detection loss of a batch.

        Args:
            feats: One map (B, 4R + C, H_i, W_i) per stride.
            batch: ``batch_idx`` (T,), ``cls`` (T,) and ``bboxes`` (T, 4) normalised centre x, centre y, width, height.
            model: Name of the served model.
            outputs: Targets to fetch as well, by their names in :class:`LossResult`.

        Raises:
            ValueError: The batch is not regular, or a box belongs to no image.
            ServerError: The server refused, or could not be reached.
        """
        inputs = self._loss_inputs(feats, batch)
        return LossResult(**self._infer(model, inputs, (*LOSS_OUTPUTS, *outputs)))

    def loss_and_gradients(
        self, feats: Sequence[Any], batch: Mapping[str, Any], *, model: str = "loss_grad", outputs: Sequence[str] = ()
    ) -> LossAndGradients:
        """The detection loss of a batch and its gradient by each map.

        Args:
            feats: As for :meth:`loss`.
            batch: As for :meth:`loss`.
            model: Name of a served model of kind ``loss_grad``.
            outputs: Targets to fetch as well, by their names in :class:`LossResult`.

        Raises:
            ValueError: As :meth:`loss`.
            ServerError: As :meth:`loss`.
        """
        inputs = self._loss_inputs(feats, batch)
        names = [f"grad_feat_{level}" for level in range(len(feats))]
        values = self._infer(model, inputs, (*LOSS_OUTPUTS, *outputs, *names))
        gradients = [values.pop(name) for name in names]
        return LossAndGradients(LossResult(**values), gradients)

    def criterion(self, model: str = "loss_grad") -> RemoteDetectionLoss:
        """A torch criterion whose loss, ``criterion(feats, batch)``, has gradients: ``backward`` works on it.

        Args:
            model: Name of a served model of kind ``loss_grad``.

        Raises:
            ModuleNotFoundError: torch is not installed.
        """
        from serve.remote_loss import RemoteDetectionLoss

        return RemoteDetectionLoss(self, model)

    def assign(
        self,
        pd_scores: Any,
        pd_bboxes: Any,
        anc_points: Any,
        gt_labels: Any,
        gt_bboxes: Any,
        mask_gt: Any,
        *,
        model: str = "assigner",
    ) -> AssignmentResult:
        """The task-aligned assignment, with the inputs and outputs of the assigner module.

        Args:
            pd_scores: (B, A, C) class probabilities.
            pd_bboxes: (B, A, 4) pixel xyxy.
            anc_points: (A, 2) pixels.
            gt_labels: (B, M, 1) classes.
            gt_bboxes: (B, M, 4) pixel xyxy.
            mask_gt: (B, M, 1), true where a slot is valid.
            model: Name of the served model.

        Raises:
            ServerError: The server refused, or could not be reached.
        """
        scores = _numpy(pd_scores, self._scores_type)
        inputs = {
            "pd_scores": scores,
            "pd_bboxes": _numpy(pd_bboxes, np.float32),
            "anc_points": _numpy(anc_points, np.float32),
            "gt_labels": _numpy(gt_labels, np.int64),
            "gt_bboxes": _numpy(gt_bboxes, np.float32),
            "mask_gt": _numpy(mask_gt, np.bool_),
        }
        # What the rest of the outputs says follows from these and from what was sent.
        targets = self._infer(model, inputs, COMPACT)
        return complete_targets(inputs["gt_labels"], inputs["gt_bboxes"], **targets, num_classes=scores.shape[2])

    def _loss_inputs(self, feats: Sequence[Any], batch: Mapping[str, Any]) -> dict[str, Array]:
        maps = [_numpy(feat, self._scores_type) for feat in feats]
        if not maps or any(feat.ndim != 4 for feat in maps):  # noqa: PLR2004
            raise ValueError(f"feats has shapes {[feat.shape for feat in maps]}; give maps (B, 4R + C, H, W)")
        missing = [key for key in ("batch_idx", "cls", "bboxes") if key not in batch]
        if missing:
            raise ValueError(f"batch lacks {', '.join(missing)}; it needs batch_idx (T,), cls (T,) and bboxes (T, 4)")
        batch_idx, cls, bboxes = (_numpy(batch[key]) for key in ("batch_idx", "cls", "bboxes"))
        height, width = (size * self._stride for size in maps[0].shape[2:])
        truth = pad_ground_truth(batch_idx, cls, bboxes, maps[0].shape[0], (height, width))
        inputs = {f"feat_{level}": feat for level, feat in enumerate(maps)}
        return inputs | truth._asdict()

    def _infer(self, model: str, arrays: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        inputs = []
        for name, array in arrays.items():
            tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            inputs.append(tensor.set_data_from_numpy(array))
        wanted = [InferRequestedOutput(name, binary_data=True) for name in outputs]
        try:
            reply = self._http.infer(model, inputs, outputs=wanted, headers=self._headers)
        except InferenceServerException as error:
            status = error.status()
            text = str(error.message())
            raise ServerError(text, int(status) if str(status).isdigit() else None) from error
        except ssl.SSLError as error:
            raise ServerError(
                f"no TLS with {self._url} ({error}); give ca_file, the authority that signed its certificate, or an "
                "http:// address where it has none"
            ) from error
        except (OSError, HTTPParseError) as error:
            raise ServerError(
                f"no reply from {self._url} ({error}); is `python -m serve` running there? With TLS, write https://"
            ) from error
        return {name: reply.as_numpy(name) for name in outputs}


def _tls(url: str, ca_file: str | Path | None) -> dict[str, Any]:
    """What the client library needs to know of it."""
    if not url.startswith("https://"):
        if ca_file is not None:
            raise ValueError(f"ca_file is for TLS, but the address is {url}; write https:// before it")
        return {}
    if ca_file is None:
        return {"ssl": True}
    try:
        ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ValueError(f"ca_file {ca_file} cannot be used ({error}); give a PEM file with certificates") from error
    return {"ssl": True, "ssl_options": {"ca_certs": str(ca_file)}}


def _numpy(value: Any, dtype: Any = None) -> Array:
    """An array of numpy or torch values, on the host, copied only where its type or layout needs it."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # numpy has no bfloat16; float32 holds its values exactly.
        value = (value.float() if "bfloat16" in str(value.dtype) else value).numpy()
    return np.ascontiguousarray(value, dtype)
