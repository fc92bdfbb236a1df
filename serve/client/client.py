"""The client: feature maps and a batch in, NamedTuples of numpy arrays out.

Takes numpy arrays or torch tensors without importing torch, and sends binary tensors through ``tritonclient``::

    with AssignerClient("localhost:8000") as client:
        result = client.loss(feats, {"batch_idx": ..., "cls": ..., "bboxes": ...})
        criterion = client.criterion()  # for training with torch
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar
from urllib.parse import quote

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import np_to_triton_dtype

from yolo_assigner.serve.client.errors import ServerError
from yolo_assigner.serve.client.predictions import Decoded, Maps, Predictions, keep_tensor
from yolo_assigner.serve.client.servers import OK, RetryPolicy, Servers
from yolo_assigner.serve.client.thin import (
    ModelOptions,
    Part,
    ScoresAndBoxes,
    divide,
    find_needed,
    halve,
    join,
    read_options,
    takes_sets,
)
from yolo_assigner.serve.client.transport import Outgoing, Reply, reason_of
from yolo_assigner.serve.detection.collate import class_inputs, pad_ground_truth
from yolo_assigner.serve.detection.grid import points_of
from yolo_assigner.serve.detection.results import (
    COMPACT,
    Array,
    AssignmentResult,
    Explanation,
    GroundTruth,
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
    check_shape,
    check_slots,
    map_list,
)
from yolo_loss.option_checks import stride_list, whole_number

if TYPE_CHECKING:
    from yolo_assigner.serve.client.torch_criterion import RemoteDetectionLoss

P = ParamSpec("P")
T = TypeVar("T")

LOSS_OUTPUTS = ("loss", "loss_items", "image_sums")
TRUTH_TYPES = (np.int64, np.float32, np.bool_)
MOST_RELOADS = 3  # of a model during one assignment, after which everything is sent
BAD_REQUEST, TOO_LARGE = 400, 413
LENGTH_HEADER = "Inference-Header-Content-Length"
MOST_ERROR_BYTES = 1000  # of a reply that is not in the protocol's form, a proxy's page for example


class AssignerClient:
    """A connection to a server, or to one of several. Threads may share it.

    A request is sent again where that can help, as :class:`RetryPolicy` says: none changes anything in a server.

    Client and server tell each other their versions; other servers of the same protocol send none, and are accepted.

    Args:
        url: ``host:port``, with or without ``http://``, or ``https://host:port`` for TLS. Several servers of the same
            models: a list of them; each request goes to the one with the fewest replies pending that is in order.
        half: Send maps, scores and pictures as FP16: half the bytes, three digits. Boxes and points always go as FP32,
            since FP16 has steps of half a pixel above 512.
        strides: Pixels per cell of the served loss model's levels, one for each map.
        timeout: Seconds to wait for the connection and for each part of a reply.
        key: API key, where the server needs one.
        ca_file: PEM file of the authority that signed the server's certificate; None: the widely trusted ones.
        retry: How often and how long a request is tried; None: as ``RetryPolicy()``.
        thin: Whether :meth:`assign` and :meth:`assign_from_maps` leave out what cannot change the result, where the
            server says how its model finds candidates. The targets are equal to the bit with and without.
        request_bytes: What a further request costs, in bytes that take as long. An assignment is sent in one request
            for each image or in one for all; the first has fewer bytes, and is always chosen with 0.
        concurrency: Most calls of :meth:`submit` at the same time, and most requests that assignments are divided into.

    Raises:
        ValueError: A stride is not above 0, another number is out of range, an address is none, or ``ca_file`` cannot
            be used or was given without TLS.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        half: bool = False,
        strides: Sequence[int] = (8, 16, 32),
        timeout: float = 60.0,
        key: str | None = None,
        ca_file: str | Path | None = None,
        retry: RetryPolicy | None = None,
        thin: bool = True,
        request_bytes: int = 2**19,
        concurrency: int = 8,
    ) -> None:
        self._scores_type = np.dtype(np.float16 if half else np.float32)
        self._strides = stride_list("strides", strides)
        self._headers = {CLIENT_HEADER: OURS} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._servers = Servers([url] if isinstance(url, str) else list(url), ca_file, timeout, retry or RetryPolicy())
        self._thin = thin
        self._request_bytes = whole_number("request_bytes", request_bytes, 0)
        self._options: dict[str, ModelOptions] = {}
        self._needs_sets: dict[str, bool] = {}
        # Two pools: a call that waits for its requests must not keep them from being sent.
        threads = whole_number("concurrency", concurrency)
        self._callers = ThreadPoolExecutor(threads, "yolo-assigner-call")
        self._senders = ThreadPoolExecutor(threads, "yolo-assigner-send")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wait for requests that are under way, and close the connections."""
        self._callers.shutdown()
        self._senders.shutdown()
        self._servers.close()

    def submit(self, method: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> Future[T]:
        """Begin a call and return at once, so that the caller's next step runs meanwhile.

        The arguments must not be changed before the call is done. Cancelling the future withdraws a call that has not
        begun::

            future = client.submit(client.assign, scores, boxes, points, labels, truth, mask)
            ...
            targets = future.result()

        Args:
            method: A method of this client.
            *arguments: Its arguments.
            **named: Its named arguments.

        Returns:
            The future of what the method returns or raises.
        """
        return self._callers.submit(method, *arguments, **named)

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

    def detector_loss(
        self, images: Any, batch: Mapping[str, Any], *, model: str = "detector_loss", outputs: Sequence[str] = ()
    ) -> LossResult:
        """Compute the detection loss of pictures by a served detector.

        Args:
            images: (B, 3, H, W) floats, red, green and blue in 0..1; sides are multiples of the largest stride.
            batch: As for :meth:`loss`.
            model: Name of a served model of kind ``detector_loss``.
            outputs: Names of targets to fetch as well, fields of :class:`LossResult`. What else such a model has, as
                ``predictions``, is for :meth:`infer` with :meth:`detector_inputs`.

        Raises:
            ValueError: The images are no floats of that shape; else as :meth:`loss`.
            ServerError: As :meth:`loss`.
        """
        return LossResult(**self.infer(model, self.detector_inputs(images, batch), (*LOSS_OUTPUTS, *outputs)))

    def detector_explain(
        self, images: Any, batch: Mapping[str, Any], *, model: str = "detector_explain"
    ) -> Explanation:
        """Explain why a served detector learns each ground truth of pictures or not, with the loss by ground truth.

        Args:
            images: As for :meth:`detector_loss`.
            batch: As for :meth:`loss`.
            model: Name of a served model of kind ``detector_explain``.

        Raises:
            ValueError: As :meth:`detector_loss`.
            ServerError: As :meth:`loss`.
        """
        return Explanation(**self.infer(model, self.detector_inputs(images, batch), Explanation._fields))

    def detector_inputs(self, images: Any, batch: Mapping[str, Any]) -> dict[str, Array]:
        """Make the inputs of a model with a detector by name, for :meth:`infer`.

        Args:
            images: As for :meth:`detector_loss`.
            batch: As for :meth:`loss`.

        Raises:
            ValueError: As :meth:`detector_loss`.
        """
        pictures = as_array("images", images, np.float32)
        check_shape("images", pictures, (None, 3, None, None), "images, colours, rows, columns")
        if not np.issubdtype(pictures.dtype, np.floating):
            raise ValueError(f"images has dtype {pictures.dtype}; divide pixels by 255 as float32, to values in 0..1")
        check_batch_size(len(pictures))
        arrays = {"images": np.ascontiguousarray(pictures, self._scores_type)}
        return arrays | _truth_inputs(batch, len(pictures), (pictures.shape[2], pictures.shape[3]))

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
            anc_points: (A, 2) pixels; or (B, A, 2), those of each image, where the model takes them.
            gt_labels: (B, M, 1) classes.
            gt_bboxes: (B, M, 4) pixel xyxy.
            mask_gt: (B, M, 1), true where a slot is valid.
            model: Name of the served model.

        Raises:
            ValueError: Shapes disagree, there is no image or anchor point, or a class does not exist.
            ServerError: The server refused, or could not be reached.
        """
        predictions = Decoded(keep_tensor("pd_scores", pd_scores), keep_tensor("pd_bboxes", pd_bboxes))
        truth = GroundTruth(
            as_array("gt_labels", gt_labels),
            as_array("gt_bboxes", gt_bboxes, np.float32),
            as_array("mask_gt", mask_gt, flags=True),
        )
        points = as_array("anc_points", anc_points, np.float32)
        named = {"pd_scores": predictions.scores, "pd_bboxes": predictions.boxes, "anc_points": points}
        check_padded(named | truth._asdict())
        check_points(points)
        return self._assign(model, predictions, points, truth)

    def assign_from_maps(
        self, feats: Sequence[Any], batch: Mapping[str, Any], *, reg_max: int = 16, model: str = "assigner"
    ) -> AssignmentResult:
        """Compute the task-aligned assignment of a head's maps; only what the server needs is decoded.

        Args:
            feats: One map (B, 4R + C, H_i, W_i) per stride.
            batch: ``batch_idx`` (T,), ``cls`` (T,) and ``bboxes`` (T, 4), as for :meth:`loss`.
            reg_max: R.
            model: Name of the served model, of kind ``assigner``.

        Returns:
            As :meth:`assign`, with the boxes of the batch in pixels and M the largest count of an image.

        Raises:
            ValueError: As :meth:`loss`; or the maps have no class.
            ServerError: As :meth:`loss`.
        """
        maps = {f"feats[{level}]": keep_tensor(f"feats[{level}]", feat) for level, feat in enumerate(map_list(feats))}
        image_size = self._check_maps(maps)
        images, channels = next(iter(maps.values())).shape[:2]
        if channels <= 4 * whole_number("reg_max", reg_max):
            raise ValueError(
                f"feats[0] has {channels} channels, no more than the 4 x {reg_max} of boxes; give the head's reg_max"
            )
        truth = pad_ground_truth(
            **batch_columns(batch), batch_size=images, image_size=image_size, num_classes=channels - 4 * reg_max
        )
        sizes = [feat.shape[2:] for feat in maps.values()]
        points = points_of(sizes, self._strides)
        return self._assign(model, Maps(list(maps.values()), self._strides, points, reg_max), points, truth)

    def _assign(self, model: str, predictions: Predictions, points: Array, truth: GroundTruth) -> AssignmentResult:
        images, _, classes = predictions.shape
        check_batch_size(images)
        check_slots(truth.gt_labels, truth.mask_gt, classes, negative=False)
        with np.errstate(invalid="ignore"):  # labels of padding may be anything
            truth = GroundTruth(*(np.ascontiguousarray(a, t) for a, t in zip(truth, TRUTH_TYPES, strict=True)))
        shared = points.shape[:-2] == (1,)
        points = np.ascontiguousarray(points[0] if shared else points, np.float32)
        targets = self._thin_targets(model, predictions, points, truth)
        if targets is None:
            scores, boxes = self._rounded(predictions.everything())
            inputs = {"pd_scores": scores, "pd_bboxes": boxes, "anc_points": points} | truth._asdict()
            targets = self._targets_of_all(model, inputs)
        # The other outputs follow from these and the inputs.
        return complete_targets(truth.gt_labels, truth.gt_bboxes, **targets, num_classes=classes)

    def _rounded(self, decoded: ScoresAndBoxes) -> ScoresAndBoxes:
        return ScoresAndBoxes(
            np.ascontiguousarray(decoded.scores, self._scores_type), np.ascontiguousarray(decoded.boxes, np.float32)
        )

    def _thin_targets(
        self, model: str, predictions: Predictions, points: Array, truth: GroundTruth
    ) -> dict[str, Array] | None:
        """Compute the ``COMPACT`` targets from what can matter; None where the model must be sent everything."""
        for _ in range(MOST_RELOADS if self._thin else 0):
            options = self._options.get(model) or self._fetch_options(model)
            if options is None:
                return None
            needed = find_needed(points, truth, options.min_box_side)
            picked = self._rounded(predictions.pick(needed))
            parts = divide(picked, points, truth, needed, self._request_bytes, options)
            assumed = {"min_box_side": json.dumps(options.min_box_side)}
            try:
                answered = self._send_parts(model, parts, assumed)
            except ServerError as error:
                if error.status != BAD_REQUEST:
                    raise
                if self._fetch_options(model) == options:
                    return None  # another server may have another model; any takes everything, or says what is wrong
                continue
            # Where nothing was sent, no model has compared its side with the assumed one.
            if parts or self._fetch_options(model) == options:
                return join(*answered, predictions.shape[:2])
        return None

    def _targets_of_all(self, model: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute the ``COMPACT`` targets from everything."""
        points = inputs["anc_points"]
        if points.shape[:-2] or self._needs_sets.get(model) is False:
            return self.infer(model, inputs, COMPACT)
        if model not in self._needs_sets:
            try:
                return self.infer(model, inputs, COMPACT)
            except ServerError as error:
                if error.status != BAD_REQUEST:
                    raise
                self._fetch_options(model)
                if not self._needs_sets.get(model):
                    raise
        return self.infer(model, {**inputs, "anc_points": points[np.newaxis]}, COMPACT)

    def _loss_inputs(self, feats: list[Any], batch: Mapping[str, Any]) -> dict[str, Array]:
        maps = {f"feats[{level}]": as_array(f"feats[{level}]", feat, np.float32) for level, feat in enumerate(feats)}
        image_size = self._check_maps(maps)
        inputs = {
            f"feat_{level}": np.ascontiguousarray(feat, self._scores_type) for level, feat in enumerate(maps.values())
        }
        return inputs | _truth_inputs(batch, len(next(iter(maps.values()))), image_size)

    def _check_maps(self, maps: Mapping[str, Any]) -> tuple[int, int]:
        """Check maps by their names in an error, and return the image's height and width."""
        check_maps(maps, self._strides)
        check_pyramid(maps, self._strides)
        images, _, rows, columns = next(iter(maps.values())).shape
        check_batch_size(images)
        return int(rows * self._strides[0]), int(columns * self._strides[0])

    def infer(
        self,
        model: str,
        arrays: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Any] | None = None,
    ) -> dict[str, Array]:
        """Send arrays to a model as they are, for models and outputs that the other methods do not know.

        Args:
            model: Name of the model.
            arrays: Inputs by name, of the types and shapes that the model's contract gives.
            outputs: Names of the outputs to return.
            parameters: Of the request, as the protocol names them; None: none.

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
        body, length = InferenceServerClient.generate_request_body(
            inputs, outputs=requested, parameters=dict(parameters or {})
        )
        headers = self._headers | ({} if length is None else {LENGTH_HEADER: str(length)})
        reply = self._servers.send(Outgoing("POST", f"{_path(model)}/infer", body, headers))
        _check_reply(reply)
        length_of_reply = reply.headers.get(LENGTH_HEADER.lower())
        try:
            result = InferenceServerClient.parse_response_body(
                reply.body,
                header_length=None if length_of_reply is None else int(length_of_reply),
                content_encoding=reply.headers.get("content-encoding"),
            )
            return {name: result.as_numpy(name) for name in outputs}
        except (ValueError, KeyError, TypeError) as error:
            raise ServerError(f"the reply is none of the inference protocol ({error!r})", reply.status) from error

    def _fetch_options(self, model: str) -> ModelOptions | None:
        """Ask for what a request of this model may leave out; None: nothing, or the server does not say."""
        reply = self._servers.send(Outgoing("GET", f"{_path(model)}/config", None, self._headers))
        options = read_options(reply.body) if reply.status == OK else None
        if reply.status == OK:
            # This project's servers take the points of all images in either form, others only in the model's own.
            self._needs_sets[model] = SERVER_HEADER.lower() not in reply.headers and takes_sets(reply.body)
        if options is None:
            self._options.pop(model, None)
        else:
            self._options[model] = options
        return options

    def _send_parts(
        self, model: str, parts: Sequence[Part], parameters: Mapping[str, Any]
    ) -> tuple[list[Part], list[dict[str, Array]]]:
        """Send requests for targets at the same time; those that are too large for the server in halves."""
        send = self._senders.map if len(parts) > 1 else map
        sent = list(send(lambda part: self._send_part(model, part, parameters), parts))
        return [part for some, _ in sent for part in some], [reply for _, some in sent for reply in some]

    def _send_part(
        self, model: str, part: Part, parameters: Mapping[str, Any]
    ) -> tuple[list[Part], list[dict[str, Array]]]:
        try:
            return [part], [self.infer(model, part.inputs, COMPACT, parameters)]
        except ServerError as error:
            if error.status != TOO_LARGE or part.images == 1:
                raise
        (parts, replies), (others, other_replies) = (self._send_part(model, half, parameters) for half in halve(part))
        return parts + others, replies + other_replies


def _truth_inputs(batch: Mapping[str, Any], images: int, image_size: tuple[int, int]) -> dict[str, Array]:
    truth = pad_ground_truth(**batch_columns(batch), batch_size=images, image_size=image_size)
    return truth._asdict() | class_inputs(batch, images, image_size)


def _path(model: str) -> str:
    return f"/v2/models/{quote(model, safe='')}"


def _check_reply(reply: Reply) -> None:
    """Refuse a server of another protocol, and pass on the reason of a refusal."""
    try:
        check_peer(SERVER_HEADER, reply.headers.get(SERVER_HEADER.lower()))
    except ValueError as error:
        raise ServerError(str(error), reply.status) from error
    if reply.status == OK:
        return
    text = reason_of(reply)
    if text is None:
        text = f"status {reply.status}: {reply.body[:MOST_ERROR_BYTES].decode(errors='replace')}"
    raise ServerError(text, reply.status)
