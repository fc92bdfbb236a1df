"""A faster interpreter for the kernels."""

from __future__ import annotations

import os
from typing import Any

import pytest

from yolo_loss.triton.launch import available


@pytest.fixture(autouse=True)
def patched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Triton's interpreter replace its language once a launch, not in every call of a device function.

    That takes more than half of the time, and changes nothing: it is the same module each time.
    """
    if not available() or os.environ.get("TRITON_INTERPRET") != "1":
        return
    import triton.language as tl
    from triton.runtime import interpreter

    launch, patch = interpreter.GridExecutor.__call__, interpreter._patch_lang

    def launch_patched(self: Any, *arguments: Any, **named: Any) -> Any:
        scope = patch(tl.standard.cdiv.fn)  # of the language's own functions; the kernel's is replaced by `launch`
        try:
            return launch(self, *arguments, **named)
        finally:
            scope.restore()

    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        return self.rewrite()(*arguments, **named)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch_patched)
    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)
