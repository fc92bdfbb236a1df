"""Cases on which every implementation is compared with float64, above all where kernels have a path of their own."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from benchmarks.common.inputs import Setting
from benchmarks.gpu.correctness import Case

FEW = Setting("assigner", 4, 30, classes=3)
LOSS = Setting("loss+grad", 4, 30)
FINE, COARSE = (4.0, 8.0, 16.0, 32.0), (8.0, 16.0, 32.0, 64.0)
CASES: Mapping[str, Case] = MappingProxyType(
    {
        "16 x 100": Case(Setting("assigner", 16, 100)),
        "16 x 300": Case(Setting("assigner", 16, 300)),
        "half": Case(FEW, "fp16"),
        "bfloat16": Case(FEW, "bf16"),
        "anchors innermost": Case(FEW, change="channels"),
        "one slot, one class": Case(Setting("assigner", 1, 1, classes=1)),
        "an odd number of anchors": Case(FEW._replace(image=96)),
        "more candidates than anchors": Case(FEW._replace(image=32), options=(("topk", 60),)),
        "1 candidate": Case(FEW, options=(("topk", 1),)),
        "64 candidates": Case(FEW, options=(("topk", 64),)),
        "one to one": Case(FEW, options=(("topk", 7), ("topk2", 1))),
        "exponents 1 and 4.5": Case(FEW, options=(("alpha", 1.0), ("beta", 4.5))),
        "ties": Case(FEW, change="ties"),
        "not finite": Case(FEW, change="not finite"),
        "four levels": Case(FEW._replace(image=320), strides=FINE),
        "loss": Case(LOSS),
        "loss, channels_last": Case(LOSS, change="channels"),
        "loss, half": Case(LOSS, "fp16"),
        "loss, bfloat16": Case(LOSS, "bf16"),
        "loss, autocast": Case(LOSS, change="autocast"),
        "loss, varifocal": Case(LOSS, options=(("class_loss", "varifocal"),)),
        "loss, class weights and regions": Case(LOSS, change="factors"),
        "loss, plain distances": Case(LOSS, reg_max=1),
        "loss, four levels from 4": Case(LOSS._replace(image=320), strides=FINE),
        "loss, four levels to 64": Case(LOSS, strides=COARSE),
        "loss, no ground truth": Case(LOSS._replace(slots=0)),
    }
)
