"""The contract: a JSON file beside each exported model that describes its inputs, outputs and hyper-parameters.

Reading a contract needs only the standard library, so a server can do it without torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTRACT_VERSION = 2  # version 1 had no precision
KINDS = ("assigner", "loss", "loss_grad", "detector_loss", "explain", "detector_explain")
# Kinds that hold a detector and take images.
DETECTOR_KINDS = ("detector_loss", "detector_explain")
# Kinds that list pairs of ground truths and anchors, whose number depends on the data: ONNX Runtime alone runs them.
SPARSE_KINDS = ("explain", "detector_explain")
# Name of each precision in numpy.
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# Contracts of engines, which may lie in the same folder.
ENGINE_SUFFIX = ".engine.json"

Axis = int | str


class ContractError(ValueError):
    """A contract or the file it describes is unusable; the message names the file and the remedy."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: Name in the graph.
        dtype: Element type by its name in numpy, for example ``float32``.
        axes: One entry per axis: its size if fixed, a letter of the shape legend if dynamic.
        heavy: Whether it is large and can be derived from other outputs; such an output is only sent when requested.
    """

    name: str
    dtype: str
    axes: tuple[Axis, ...]
    heavy: bool = False


@dataclass(frozen=True)
class Contract:
    """Description of an exported model.

    Attributes:
        name: Name under which the model is served, and the stem of both files.
        kind: One of ``KINDS``.
        file: Name of the ONNX file, beside the contract.
        sha256: Hash of that file.
        formulation: Implementation of the assignment, ``dense`` or ``sparse``.
        hyperparameters: What ``Hyperparameters.as_contract`` returned.
        inputs: Inputs in the graph's order.
        outputs: Outputs in the graph's order.
        versions: Versions of this project and of the libraries used for the export.
        precision: One of ``PRECISIONS``: the type of predictions and images, and of a detector's network. Everything
            else is computed in float32.
        contract_version: Version of this format.
    """

    name: str
    kind: str
    file: str
    sha256: str
    formulation: str
    hyperparameters: dict[str, Any]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    versions: dict[str, str]
    precision: str = "fp32"
    contract_version: int = CONTRACT_VERSION

    @property
    def maps(self) -> tuple[TensorSpec, ...]:
        """Inputs that are raw maps, one per level; empty for models that take something else."""
        return tuple(spec for spec in self.inputs if spec.name.startswith("feat_"))

    @property
    def default_outputs(self) -> tuple[str, ...]:
        """Names of the outputs that are sent when none is requested."""
        return tuple(spec.name for spec in self.outputs if not spec.heavy)

    @property
    def terms(self) -> tuple[str, str, str]:
        """Names of the three losses in ``loss_items`` and ``image_sums``, for models with a loss."""
        return "box", "cls", "l1" if self.hyperparameters["reg_max"] == 1 else "dfl"

    @property
    def gains(self) -> tuple[float, ...]:
        """Weights of the three losses, for models with a loss; that of l1 is called ``dfl``, too."""
        gains = self.hyperparameters["gains"]
        return tuple(float(gains[term]) for term in ("box", "cls", "dfl"))

    def save(self, path: Path) -> None:
        """Write the contract as JSON, atomically."""
        write_json(path, dataclasses.asdict(self))


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file through a temporary one beside it, so that no reader sees a partial file."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON file atomically."""
    write_atomically(path, f"{json.dumps(data, indent=2)}\n".encode())


def read_specs(rows: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    """Convert tensors from their form in JSON."""
    return tuple(TensorSpec(**{**row, "axes": tuple(row["axes"])}) for row in rows)


def read_versioned(path: Path, newest: int, remedy: str) -> dict[str, Any]:
    """Read a JSON object with a ``contract_version``.

    Args:
        path: The file.
        newest: The version that this release writes.
        remedy: How to make a valid file, for error messages.

    Raises:
        ContractError: The file is not JSON, or its version is missing or newer.
    """
    try:
        data = json.loads(_regular(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ContractError(f"{path} cannot be read as a contract ({error}); {remedy}") from error
    version = data.get("contract_version") if isinstance(data, dict) else None
    if not isinstance(version, int):
        raise ContractError(f"{path} is not a contract: it has no contract_version; {remedy}")
    if version > newest:
        raise ContractError(
            f"{path} has contract version {version}, this release reads up to {newest}; "
            f"upgrade yolo-assigner or, with this release, {remedy}"
        )
    return dict(data)


def load_contract(path: Path) -> Contract:
    """Read a contract.

    Args:
        path: The JSON file.

    Raises:
        ContractError: The file is not JSON, not a contract, or in a newer format.
    """
    remedy = "export the model again with `yolo-assigner export onnx`"
    data = read_versioned(path, CONTRACT_VERSION, remedy)
    try:
        contract = Contract(**{**data, "inputs": read_specs(data["inputs"]), "outputs": read_specs(data["outputs"])})
    except (KeyError, TypeError) as error:
        raise ContractError(f"{path} is not a complete contract ({error}); {remedy}") from error
    texts = (contract.name, contract.file, contract.sha256, contract.formulation)
    if not (all(isinstance(text, str) for text in texts) and isinstance(contract.hyperparameters, dict)):
        raise ContractError(f"{path} is not a complete contract (a value has the wrong type); {remedy}")
    if contract.kind not in KINDS:
        raise ContractError(f"{path} describes a model of kind {contract.kind!r}, not one of {', '.join(KINDS)}")
    return contract


def file_hash(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal.

    Raises:
        OSError: The file cannot be read.
    """
    with _regular(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _regular(path: Path) -> Path:
    # Opening a FIFO would block, and reading a device may never end.
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is no regular file")
    return path


def find_contracts(folder: Path) -> list[tuple[Path, Contract]]:
    """Read all contracts in a folder and check each model file against its hash.

    Args:
        folder: Output folder of ``yolo-assigner export onnx``.

    Returns:
        Pairs of model path and contract, ordered by name.

    Raises:
        ContractError: There is no contract, one is unreadable, or a model file is missing or does not match.
    """
    found, damaged = scan_contracts(folder)
    for error in damaged.values():
        raise error
    return found


def scan_contracts(folder: Path) -> tuple[list[tuple[Path, Contract]], dict[str, ContractError]]:
    """Like :func:`find_contracts`, but return the errors of unusable models instead of raising the first.

    Returns:
        Pairs of model path and contract, ordered by name; and errors by model name.

    Raises:
        ContractError: There is no contract.
    """
    found, damaged = [], {}
    for name, path in contract_paths(folder).items():
        try:
            found.append(open_contract(path))
        except ContractError as error:
            damaged[name] = error
    return found, damaged


def contract_paths(folder: Path) -> dict[str, Path]:
    """Find the contracts in a folder without opening them.

    Returns:
        Paths of the contracts by model name, in the order of the names.

    Raises:
        ContractError: There is no contract.
    """
    paths = {path.stem: path for path in sorted(folder.glob("*.json")) if not path.name.endswith(ENGINE_SUFFIX)}
    if not paths:
        raise ContractError(
            f"no contract (*.json) in {folder}; write one with `yolo-assigner export onnx --model loss --out {folder}`"
        )
    return paths


def open_contract(path: Path) -> tuple[Path, Contract]:
    """Read a contract and check its model file against its hash.

    Returns:
        Path of the model file, and the contract.

    Raises:
        ContractError: The contract is unreadable, or the model file is missing or does not match.
    """
    contract = load_contract(path)
    if contract.name != path.stem:  # else two contracts could describe models of one name
        raise ContractError(f"{path} describes model {contract.name!r}; rename it to {contract.name}.json")
    model = path.parent / contract.file
    if not model.exists():
        raise ContractError(f"{path} describes {contract.file}, which is not beside it; export the model again")
    try:
        found = file_hash(model)
    except OSError as error:
        raise ContractError(f"{model} cannot be read ({error}); make it readable or export it again") from error
    if found != contract.sha256:
        raise ContractError(f"{model} is not the file that {path.name} describes (hash differs); export it again")
    return model, contract
