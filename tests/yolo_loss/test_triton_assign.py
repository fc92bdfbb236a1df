"""The assignment in Triton's kernels: that they compile, when they are used, and by an interpreter what they give."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from yolo_assigner.export.samples import Case, pyramid, sample_assigner_inputs
from yolo_loss import TaskAlignedAssigner
from yolo_loss.assignment import triton as triton_assign
from yolo_loss.assignment.params import AssignerParams
from yolo_loss.assignment.triton import is_supported
from yolo_loss.execution.channels import ClassScores

STRIDES = (8.0, 16.0, 32.0)
CASE = Case(2, 9, pyramid(96, 128, STRIDES), 4)
CPU = torch.device("cpu")
needs_triton = pytest.mark.skipif(
    not triton_assign.available(), reason="triton is not installed; pip install 'yolo-assigner[triton]'"
)


@needs_triton
def test_kernels_by_the_interpreter() -> None:
    """In a process of its own: Triton's functions are made for one or the other when it is imported."""
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/yolo_loss/interpreted.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout


@needs_triton
def test_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    params = AssignerParams(10, 0.5, 6.0)
    scores = ClassScores((), torch.float32)
    cuda = torch.device("cuda")
    assert is_supported(scores, params, cuda)
    assert not is_supported(scores._replace(dtype=torch.float64), params, cuda)
    for change in ({"alpha": 0.3}, {"beta": 7.0}, {"topk2": 1}, {"topk": 65}):
        assert not is_supported(scores, params._replace(**change), cuda)
    assert not is_supported(scores, params, torch.device("meta"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not is_supported(scores, params, CPU)


@needs_triton
@pytest.mark.parametrize("options", [{}, {"topk2": 1}])
def test_the_dense_implementation_computes_what_does_not_fit(monkeypatch: pytest.MonkeyPatch, options: Any) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    inputs = sample_assigner_inputs(CASE, STRIDES, seed=0)
    want, got = (TaskAlignedAssigner(10, 4, implementation=name, **options)(*inputs) for name in ("dense", "triton"))
    for ours, theirs in zip(got, want, strict=True):
        assert torch.equal(ours, theirs)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolo_loss.assigner.available", lambda: False)
    with pytest.raises(ValueError, match="'triton', but that package is missing; pip install triton, or choose auto"):
        TaskAlignedAssigner(implementation="triton")


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from yolo_loss.assignment import triton_kernels as kernels
floats = "points boxes truth_boxes areas s0 s1 s2 anchor_metric max_metric max_iou".split()
types = {name: "*fp32" for name in floats} | {"labels": "*i64", "valid": "*i32", "eps": "fp32"}
types |= {name: "*i32" for name in ("times_chosen", "chosen_by", "gt_idx")}
values = {"k": 10, "table_size": 16, "alpha": 0.5, "beta": 6.0, "logits": True, "block": 512}
for kernel in (kernels.select_topk, kernels.resolve_conflicts):
    own = {name: value for name, value in values.items() if name in kernel.arg_names}
    signature = {name: "constexpr" if name in own else types.get(name, "i32") for name in kernel.arg_names}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=own)
    for capability in (80, 90):
        built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": False})
        print(len(built.asm["cubin"]))
"""


@needs_triton
def test_kernels_compile_for_a_gpu() -> None:
    """Triton brings the assembler for it, so none is needed here. In a process of its own, without the interpreter."""
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 4
