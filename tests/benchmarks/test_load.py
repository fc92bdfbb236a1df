"""The load benchmark's comparison of a server's answers with those of ONNX Runtime without one."""

from __future__ import annotations

import pytest

from benchmarks.load.cases import CASES, TINY
from benchmarks.load.prepare import check_direct, prepare
from tests.exports import exported
from tests.served import serving


def test_answers_are_those_of_onnx_runtime(capfd: pytest.CaptureFixture[str]) -> None:
    folder = exported("assigner", "sparse")
    chosen = [case for case in CASES if case.model == "assigner" and case.size == TINY]
    with serving(folder) as server:
        prepared = prepare(server.port, chosen, {})
    assert chosen
    assert check_direct(folder, prepared) == []
    other = bytearray(prepared[0].reply)
    other[-1] ^= 1
    assert len(check_direct(folder, [prepared[0]._replace(reply=bytes(other))])) == 1
    assert "Traceback" not in capfd.readouterr().err
