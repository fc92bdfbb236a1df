"""Mutated requests: a refusal or the right answer, and the right answer for the next caller.

``python -m benchmarks.hostile`` sends tens of thousands of the same kinds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import randoms

from tests.serve.conftest import Live
from tests.serve.hostile.framing import ATTACKS, carry_out
from tests.serve.hostile.judge import Judge
from tests.serve.hostile.mutations import KINDS
from tests.serve.hostile.requests import Request, ask, good, good_requests

FEW = settings(max_examples=25, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
VERY_FEW = settings(FEW, max_examples=6)


@pytest.fixture(autouse=True)
def _serves_the_next(live: Live, judge: Judge) -> Iterator[None]:
    yield
    for request in good_requests():
        reply = ask(live.port, request)
        assert reply.status == 200
        assert judge.fault(request, reply) is None
    assert live.process.poll() is None


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bombs"])
def test_mutations(live: Live, judge: Judge, kind: str) -> None:
    make: Callable[[random.Random], Request] = KINDS[kind][0]

    @FEW
    @given(randoms(use_true_random=True))
    def check(chance: random.Random) -> None:
        request = make(chance)
        fault = judge.fault(request, ask(live.port, request))
        assert fault is None, (request, fault)

    check()


@pytest.mark.parametrize("name", ATTACKS)
def test_framing(live: Live, judge: Judge, name: str) -> None:
    @VERY_FEW
    @given(randoms(use_true_random=True))
    def check(chance: random.Random) -> None:
        what = ATTACKS[name](name, good(chance).request(), chance)
        statuses, fault = carry_out(live.port, what, judge.fault)
        assert fault is None, (what, statuses, fault)

    check()
