"""torch.compile for the few functions that take most of the time, and protection from it and from autocast elsewhere.

All other functions have data-dependent sizes, for which a compiler would recompile again and again.
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
def kernels_compiled(enabled: bool) -> Iterator[None]:
    """Within the context, run functions marked as :func:`kernel` compiled, in this thread alone."""
    token = _active.set(enabled)
    try:
        yield
    finally:
        _active.reset(token)


def compiling_kernels() -> bool:
    """Whether kernels run compiled. False while a whole graph is traced, which includes them uncompiled."""
    return not torch.compiler.is_compiling() and _active.get()


def kernel(function: Callable[P, T]) -> Callable[P, T]:
    """Mark a pure function of tensors as worth compiling."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        chosen: Callable[P, T] = _compiled(function) if compiling_kernels() else function
        return chosen(*args, **kwargs)

    return call


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Dynamic, because the number of pairs differs with every batch.
    return torch.compile(function, dynamic=True)


def uncompiled(function: Callable[P, T]) -> Callable[P, T]:
    """Exclude a function from a surrounding ``torch.compile``, which would recompile for each batch's pairs."""
    excluded: Callable[P, T] = torch.compiler.disable(function)
    return excluded


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Disable autocast within the context: it would take the decoding's products in half precision."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
