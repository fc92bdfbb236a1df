"""``config.pbtxt``, in which Triton Inference Server is told about a model: protobuf's text format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from yolo_assigner.export.contract import TensorSpec

# Every file of ours begins with it.
MARK = "# Written by `yolo-assigner export triton`."
DYNAMIC = -1
TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "bool": "TYPE_BOOL",
}


def render_config(
    name: str,
    backend: str,
    inputs: Iterable[TensorSpec],
    outputs: Iterable[TensorSpec],
    *,
    profiles: int = 1,
    parameters: Mapping[str, str],
) -> str:
    """The text of a configuration.

    ``max_batch_size`` is 0: Triton hands requests over as they come, and shapes are written in full. With any other
    number it would merge requests, for which every tensor needs B as its first axis; ``anc_points`` has none, and
    merged losses would be one loss of all. With inputs and outputs given Triton completes nothing by itself, which
    would take A for a batch axis.

    Args:
        name: Of the model and of its folder.
        backend: ``onnxruntime`` or ``tensorrt``.
        inputs: In the file's types.
        outputs: In the file's types.
        profiles: Of the engine; Triton chooses among those it is told of.
        parameters: Strings for people and tools, which Triton passes on.
    """
    lines = [MARK, f"name: {quote(name)}", f"backend: {quote(backend)}", "max_batch_size: 0"]
    lines += [line for spec in inputs for line in _tensor("input", spec)]
    lines += [line for spec in outputs for line in _tensor("output", spec)]
    lines.append("version_policy { specific { versions: [ 1 ] } }")
    if profiles > 1:
        numbers = ", ".join(quote(str(number)) for number in range(profiles))
        lines.append(f"instance_group [ {{ kind: KIND_GPU profile: [ {numbers} ] }} ]")
    for key, value in parameters.items():
        lines.append(f"parameters {{ key: {quote(key)} value {{ string_value: {quote(value)} }} }}")
    return "\n".join([*lines, ""])


def _tensor(kind: str, spec: TensorSpec) -> list[str]:
    # Triton knows no shape without axes. Its ONNX Runtime backend takes [1] for a scalar; an empty reshape, the way
    # where requests are merged, is refused where they are not.
    axes = spec.axes or (1,)
    dims = ", ".join(str(axis if isinstance(axis, int) else DYNAMIC) for axis in axes)
    return [
        f"{kind} {{",
        f"  name: {quote(spec.name)}",
        f"  data_type: {TYPES[spec.dtype]}",
        f"  dims: [ {dims} ]",
        "}",
    ]


def quote(text: str) -> str:
    """A string of protobuf's text format."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
