"""The client: feature maps and a batch in, NamedTuples of numpy arrays out.

Takes numpy arrays or torch tensors without importing torch, and sends binary tensors through ``tritonclient``::

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

from yolo_assigner.serve.detection.collate import class_inputs, pad_ground_truth
from yolo_assigner.serve.detection.results import (
    COMPACT,
    Array,
    AssignmentResult,
    Explanation,
    LossAndGradients,
    LossResult,
    complete_targets,
)
from yolo_assigner.serve.versions import CLIENT_HEADER, OURS, SERVER_HEADER, check_peer
from yolo_loss.checks import (
    as_array,
    batch_columns,
    check_batch_size,
    check_maps,
    check_padded,
    check_points,
    check_pyramid,
    check_slots,
    map_list,
)
from yolo_loss.option_checks import stride_list

if TYPE_CHECKING:
    from yolo_assigner.serve.client.torch_criterion import RemoteDetectionLoss

LOSS_OUTPUTS = ("loss", "loss_items", "image_sums")


class ServerError(RuntimeError):
    """The server refused the request or could not be reached; the text is the reason.

    Attributes:
        status: HTTP status; None: there was no reply.
    """

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


class _Connection(InferenceServerClient):  # type: ignore[misc]  # it has no types
    """The protocol's client, with a look at the reply's headers, which it does not return."""

    def _post(self, *arguments: Any, **named: Any) -> Any:
        reply = super()._post(*arguments, **named)
        server = reply.get(SERVER_HEADER)
        try:
            check_peer(SERVER_HEADER, None if server is None else str(server))
        except ValueError as error:
            reply.release()
            raise ServerError(str(error), reply.status_code) from error
        return reply


class AssignerClient:
    """A connection to a server. Use one per thread.

    Client and server tell each other their versions; other servers of the same protocol send none, and are accepted.

    Args:
        url: ``host:port``, with or without ``http://``, or ``https://host:port`` for TLS.
        half: Send maps and scores as FP16: half the bytes, three digits. Boxes and points always go as FP32, since FP16
            has steps of half a pixel above 512.
        strides: Pixels per cell of the served loss model's levels, one for each map.
        timeout: Seconds to wait for the connection and for each reply.
        key: API key, where the server needs one.
        ca_file: PEM file of the authority that signed the server's certificate; None: the widely trusted ones.

    Raises:
        ValueError: A stride is not above 0, or ``ca_file`` cannot be used or was given without TLS.
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
        self._strides = stride_list("strides", strides)
        self._headers = {CLIENT_HEADER: OURS} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._http = _Connection(address, connection_timeout=timeout, network_timeout=timeout, **_tls(url, ca_file))

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
        """Compute the detection loss of a batch.

        Args:
            feats: One map (B, 4R + C, H_i, W_i) per stride.
            batch: ``batch_idx`` (T,), ``cls`` (T,) and ``bboxes`` (T, 4) normalised centre x, centre y, width, height.
                For a model that was exported with these inputs also ``class_weights`` (C,) or (B, C), and
                ``ignore_idx`` (K,) with ``ignore_bboxes`` (K, 4).
            model: Name of the served model.
            outputs: Names of targets to fetch as well, fields of :class:`LossResult`.

        Raises:
            ValueError: The maps are not the levels of one image in the order of the strides, the batch is not regular,
                an image does not exist, or a box is not finite or in pixels.
            ServerError: The server refused, or could not be reached.
        """
        inputs = self._loss_inputs(map_list(feats), batch)
        return LossResult(**self.infer(model, inputs, (*LOSS_OUTPUTS, *outputs)))

    def loss_and_gradients(
        self, feats: Sequence[Any], batch: Mapping[str, Any], *, model: str = "loss_grad", outputs: Sequence[str] = ()
    ) -> LossAndGradients:
        """Compute the detection loss of a batch and its gradient by each map.

        Args:
            feats: As for :meth:`loss`.
            batch: As for :meth:`loss`.
            model: Name of a served model of kind ``loss_grad``.
            outputs: Names of targets to fetch as well, fields of :class:`LossResult`.

        Raises:
            ValueError: As :meth:`loss`.
            ServerError: As :meth:`loss`.
        """
        feats = map_list(feats)
        inputs = self._loss_inputs(feats, batch)
        names = [f"grad_feat_{level}" for level in range(len(feats))]
        values = self.infer(model, inputs, (*LOSS_OUTPUTS, *outputs, *names))
        gradients = [values.pop(name) for name in names]
        return LossAndGradients(LossResult(**values), gradients)

    def explain(self, feats: Sequence[Any], batch: Mapping[str, Any], *, model: str = "explain") -> Explanation:
        """Explain why each ground truth of a batch is learned or not, with the loss by ground truth.

        Args:
            feats: As for :meth:`loss`.
            batch: As for :meth:`loss`.
            model: Name of a served model of kind ``explain``.

        Raises:
            ValueError: As :meth:`loss`.
            ServerError: As :meth:`loss`.
        """
        return Explanation(**self.infer(model, self._loss_inputs(map_list(feats), batch), Explanation._fields))

    def criterion(self, model: str = "loss_grad") -> RemoteDetectionLoss:
        """Make a torch criterion, whose loss ``criterion(feats, batch)`` supports ``backward``.

        Args:
            model: Name of a served model of kind ``loss_grad``.

        Raises:
            ModuleNotFoundError: torch is not installed.
        """
        from yolo_assigner.serve.client.torch_criterion import RemoteDetectionLoss

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
        """Compute the task-aligned assignment, with the inputs and outputs of the assigner module.

        Args:
            pd_scores: (B, A, C) class probabilities.
            pd_bboxes: (B, A, 4) pixel xyxy.
            anc_points: (A, 2) pixels.
            gt_labels: (B, M, 1) classes.
            gt_bboxes: (B, M, 4) pixel xyxy.
            mask_gt: (B, M, 1), true where a slot is valid.
            model: Name of the served model.

        Raises:
            ValueError: Shapes disagree, there is no image or anchor point, or a class does not exist.
            ServerError: The server refused, or could not be reached.
        """
        given = {
            "pd_scores": as_array("pd_scores", pd_scores, np.float32),
            "pd_bboxes": as_array("pd_bboxes", pd_bboxes, np.float32),
            "anc_points": as_array("anc_points", anc_points, np.float32),
            "gt_labels": as_array("gt_labels", gt_labels),
            "gt_bboxes": as_array("gt_bboxes", gt_bboxes, np.float32),
            "mask_gt": as_array("mask_gt", mask_gt, flags=True),
        }
        check_padded(given)
        images, _, classes = given["pd_scores"].shape
        check_batch_size(images)
        check_points(given["anc_points"])
        check_slots(given["gt_labels"], given["mask_gt"], classes, negative=False)
        types: dict[str, Any] = {"pd_scores": self._scores_type, "gt_labels": np.int64, "mask_gt": np.bool_}
        with np.errstate(invalid="ignore"):  # labels of padding may be anything
            inputs = {name: np.ascontiguousarray(array, types.get(name, np.float32)) for name, array in given.items()}
        # The other outputs follow from these and the inputs.
        targets = self.infer(model, inputs, COMPACT)
        return complete_targets(inputs["gt_labels"], inputs["gt_bboxes"], **targets, num_classes=classes)

    def _loss_inputs(self, feats: list[Any], batch: Mapping[str, Any]) -> dict[str, Array]:
        maps = {f"feats[{level}]": as_array(f"feats[{level}]", feat, np.float32) for level, feat in enumerate(feats)}
        check_maps(maps, self._strides)
        check_pyramid(maps, self._strides)
        images, _, rows, columns = next(iter(maps.values())).shape
        check_batch_size(images)
        image_size = (int(rows * self._strides[0]), int(columns * self._strides[0]))
        truth = pad_ground_truth(**batch_columns(batch), batch_size=images, image_size=image_size)
        inputs = {
            f"feat_{level}": np.ascontiguousarray(feat, self._scores_type) for level, feat in enumerate(maps.values())
        }
        return inputs | truth._asdict() | class_inputs(batch, images, image_size)

    def infer(self, model: str, arrays: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Send arrays to a model as they are, for models and outputs that the other methods do not know.

        Args:
            model: Name of the model.
            arrays: Inputs by name, of the types and shapes that the model's contract gives.
            outputs: Names of the outputs to return.

        Returns:
            The outputs by name.

        Raises:
            ServerError: The server refused the request, or cannot be reached.
        """
        inputs = []
        for name, array in arrays.items():
            tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            inputs.append(tensor.set_data_from_numpy(array))
        requested = [InferRequestedOutput(name, binary_data=True) for name in outputs]
        try:
            reply = self._http.infer(model, inputs, outputs=requested, headers=dict(self._headers))
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
                f"no reply from {self._url} ({error}); is `yolo-assigner serve` running there? With TLS, write https://"
            ) from error
        return {name: reply.as_numpy(name) for name in outputs}


def _tls(url: str, ca_file: str | Path | None) -> dict[str, Any]:
    """Options of the client library for TLS."""
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
