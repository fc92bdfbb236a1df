"""Load weights from files without executing code that a file may contain."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

# Keys under which a checkpoint may hold its state dict.
WRAPPERS = ("model", "state_dict")


def load_checkpoint(module: nn.Module, path: Path) -> None:
    """Load weights into a module.

    Args:
        module: The module, which keeps its dtypes and devices; half-precision weights are converted.
        path: A file that :func:`read_state_dict` reads.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not a state dict of this module. The message lists every name that is missing,
            unexpected or of another shape, and the module is unchanged.
    """
    state = read_state_dict(path)
    own = module.state_dict()
    complaints = [
        *(f"missing: {name}" for name in own if name not in state),
        *(f"unexpected: {name}" for name in state if name not in own),
        *(
            f"wrong shape: {name} is {tuple(state[name].shape)}, the model has {tuple(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ),
    ]
    if complaints:
        raise ValueError(
            f"{path} does not fit the model; check its scale, nc and reg_max, pyramid and end_to_end:\n  "
            + "\n  ".join(complaints)
        )
    module.load_state_dict(state)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict.

    Args:
        path: A ``.safetensors`` file, or a file of ``torch.save`` with a dict of tensors, which may be the value of
            ``model`` or ``state_dict`` in another dict.

    Returns:
        Tensors by name, on the CPU, in the file's dtypes.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file has another content, for example a pickled model.
    """
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file ({error})") from error
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # the unpickler raises nearly anything for a damaged file
        raise ValueError(
            f"{path} does not hold plain tensors; where you trust it, load it with the library that wrote it and "
            "save only the weights: torch.save(model.state_dict(), path)"
        ) from error
    return _unwrap(content, path)


def _unwrap(content: object, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        wrapped = [content[name] for name in WRAPPERS if name in content]
        for candidate in (*wrapped, content):
            if isinstance(candidate, Mapping) and all(isinstance(value, Tensor) for value in candidate.values()):
                return dict(candidate)
    raise ValueError(f"{path} holds no dict of tensors, neither bare nor as {' or '.join(WRAPPERS)}")
