"""Compile every kernel of real steps for GPUs, none of which is needed: registers, spills and shared memory of each.

``python -m tests.yolo_loss.triton.compiled`` writes the table; the tests read ``--json`` of one step, ``--only STEP``.
Triton brings the compiler and the tools that read its result. Not with ``TRITON_INTERPRET``.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tests.yolo_loss.triton.launches import META, Launch, recorded
from yolo_assigner.export.samples import Case, pyramid, sample_assigner_inputs
from yolo_loss import ClassInputs, DetectionLoss, GroundTruth, TaskAlignedAssigner
from yolo_loss.predictions import join_predictions

CAPABILITIES = (80, 90, 120)
STRIDES = (8.0, 16.0, 32.0)
IMAGES, SLOTS, CLASSES = 16, 30, 80
TYPES = {
    **{torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int64: "i64", torch.int32: "i32"},
    torch.uint8: "u8",
}
OPTIONS = ("num_warps", "enable_fp_fusion")
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


class Resources(NamedTuple):
    """What a program of a kernel takes on a GPU.

    Attributes:
        kernel: Its name.
        variant: Which step it is of.
        capability: Compute capability, times 10.
        registers: Of each thread.
        spilled: Bytes of registers that each thread keeps in memory.
        shared: Bytes of shared memory.
    """

    kernel: str
    variant: str
    capability: int
    registers: int
    spilled: int
    shared: int


def steps() -> dict[str, list[Launch]]:
    """The launches of some training steps, and of the assigner alone, by name."""
    return {
        "float32": _step(torch.float32),
        "float16": _step(torch.float16),
        # bfloat16, channels last, and exponents that are no small numbers.
        "topk2": _step(torch.bfloat16, True, topk2=1, class_loss="varifocal", alpha=0.3, beta=2.7),
        # R = 1, class weights and regions.
        "weighted": _step(torch.float32, reg_max=1, with_inputs=True),
        "assigner": _assigner(),
    }


def _step(
    dtype: torch.dtype, channels_last: bool = False, reg_max: int = 16, with_inputs: bool = False, **options: Any
) -> list[Launch]:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    maps = [
        torch.empty(IMAGES, 4 * reg_max + CLASSES, *grid, dtype=dtype, device=META).contiguous(memory_format=layout)
        for grid in pyramid(640, 640, STRIDES)
    ]
    weights = (1.0,) * CLASSES if with_inputs else None
    criterion = DetectionLoss(CLASSES, STRIDES, reg_max, implementation="triton", class_weights=weights, **options)
    with recorded() as found:
        leaves = [level.requires_grad_() for level in maps]
        joined = join_predictions(leaves, STRIDES, CLASSES, reg_max, criterion.anchor_maker)
        result = criterion.from_padded(joined, _truth(), _class_inputs() if with_inputs else ClassInputs())
        result.loss.backward()
    return found.kernels


def _truth() -> GroundTruth:
    boxes = torch.empty(IMAGES, SLOTS, 4, device=META)
    labels = torch.empty(IMAGES, SLOTS, 1, dtype=torch.int64, device=META)
    return GroundTruth(labels, boxes, torch.empty(IMAGES, SLOTS, 1, dtype=torch.bool, device=META))


def _class_inputs() -> ClassInputs:
    regions, mask = torch.empty(IMAGES, 3, 4, device=META), torch.empty(IMAGES, 3, 1, dtype=torch.bool, device=META)
    return ClassInputs(torch.empty(IMAGES, CLASSES, device=META), regions, mask)


def _assigner() -> list[Launch]:
    inputs = sample_assigner_inputs(Case(1, 4, pyramid(640, 640, STRIDES), CLASSES), STRIDES, seed=0)
    with recorded() as found:
        TaskAlignedAssigner(implementation="triton")(*(tensor.to(META) for tensor in inputs))
    return found.kernels


def compile_launch(launch: Launch, variant: str, capability: int) -> Resources:
    """Compile a kernel as this launch needs it.

    Args:
        launch: Gives the types, the constants, and which sizes are multiples of 16 or 1.
        variant: A name for it.
        capability: Compute capability, times 10.
    """
    options = {name: launch.arguments[name] for name in OPTIONS if name in launch.arguments}
    signature: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for place, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        described = _describe(value, (place,), parameter.is_constexpr, constants, attributes)
        signature[parameter.name] = described
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilled = _usage(built.asm["cubin"])
    return Resources(launch.name, variant, capability, registers, spilled, built.metadata.shared)


def _describe(value: Any, place: tuple[int, ...], constant: bool, constants: Any, attributes: Any) -> Any:
    """The type of an argument as a signature has it; constants and divisible values are entered by their place."""
    if constant or value is None or (isinstance(value, int) and value == 1):
        constants[place] = value
        return "constexpr"
    if isinstance(value, tuple):
        return tuple(
            _describe(entry, (*place, number), False, constants, attributes) for number, entry in enumerate(value)
        )
    if isinstance(value, Tensor):
        attributes[place] = [["tt.divisibility", 16]]
        return "*" + TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    if value % 16 == 0:
        attributes[place] = [["tt.divisibility", 16]]
    return "i32"


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers and spilled bytes, read from the machine code."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        words = [str(tool), "--dump-resource-usage", str(file)]
        text = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    registers, stack, _, local = (int(number) for number in USAGE.findall(text)[0])
    return registers, stack + local


def every(only: str | None) -> list[Resources]:
    """All kernels of all steps, or of one."""
    return [
        compile_launch(launch, variant, capability)
        for variant, launches in steps().items()
        if only in (None, variant)
        for launch in launches
        for capability in CAPABILITIES
    ]


def table(results: list[Resources]) -> str:
    """A table of registers, spilled bytes and shared memory for the capabilities in turn."""
    rows: dict[tuple[str, str], list[Resources]] = {}
    for one in results:
        rows.setdefault((one.variant, one.kernel), []).append(one)
    lines = ["| step | kernel | registers | spilled bytes | shared bytes |", "| --- | --- | --- | --- | --- |"]
    for (variant, kernel), row in rows.items():
        columns = (" / ".join(str(getattr(one, name)) for one in row) for name in ("registers", "spilled", "shared"))
        lines.append(f"| {variant} | `{kernel}` | {' | '.join(columns)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--only", metavar="STEP", help="one of " + ", ".join(steps()))
    words = parser.parse_args()
    found = every(words.only)
    print(json.dumps([one._asdict() for one in found]) if words.json else table(found))
