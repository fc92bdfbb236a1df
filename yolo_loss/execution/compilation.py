"""How operations are run: torch.compile for the few functions in which the time goes, and no mixed precision.

The rest has sizes that depend on the data, at which a compiler would stop again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

_active: ContextVar[bool] = ContextVar("compiled kernels", default=False)


@contextmanager
def kernels_compiled(wanted: bool) -> Iterator[None]:
    """Inside, functions marked as :func:`kernel` run compiled, in this thread alone."""
    token = _active.set(wanted)
    try:
        yield
    finally:
        _active.reset(token)


def compiling_kernels() -> bool:
    """Kernels are compiled here. Not while a whole graph is traced, which takes them in as they are."""
    return not torch.compiler.is_compiling() and _active.get()


def kernel(function: Callable[P, T]) -> Callable[P, T]:
    """Mark a pure function of tensors as worth compiling."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        chosen: Callable[P, T] = _compiled(function) if compiling_kernels() else function
        return chosen(*args, **kwargs)

    return call


def uncompiled(function: Callable[P, T]) -> Callable[P, T]:
    """Keep out of a ``torch.compile`` around it, which would recompile for every batch's number of pairs."""
    kept: Callable[P, T] = torch.compiler.disable(function)
    return kept


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, nothing is mixed precision: products of the decoding would be taken in half precision."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # One program for all sizes: those of pairs differ with every batch.
    return torch.compile(function, dynamic=True)
