"""The contract: a JSON file beside each exported model that says what goes in and what comes out.

Reading one needs nothing but the standard library, so a server can do it without torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTRACT_VERSION = 2  # 1 knew no precision
KINDS = ("assigner", "loss", "loss_grad", "detector_loss")
# numpy's name of each precision's element type.
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# Engines have contracts of their own, which may lie in the same folder.
ENGINE_SUFFIX = ".engine.json"

Axis = int | str


class ContractError(ValueError):
    """A contract or the file it describes cannot be used; the message names the file and the remedy."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: Name in the graph.
        dtype: numpy's name of the element type, for example ``float32``.
        axes: One entry per axis: a number when fixed, a letter of the shape legend when dynamic.
        heavy: Large and derivable; left out of an answer unless asked for by name.
    """

    name: str
    dtype: str
    axes: tuple[Axis, ...]
    heavy: bool = False


@dataclass(frozen=True)
class Contract:
    """What an exported model takes, gives and was built with.

    Attributes:
        name: Name under which the model is served; also the stem of both files.
        kind: One of ``KINDS``.
        file: Name of the ONNX file, beside the contract.
        sha256: Hash of that file's bytes.
        formulation: How the assignment is computed inside, for example ``dense``.
        hyperparameters: All numbers that decide the result.
        inputs: Inputs in the graph's order.
        outputs: Outputs in the graph's order.
        versions: Versions of this project and of the libraries that took part.
        precision: One of ``PRECISIONS``: the type of predictions and pictures, and of a detector's network. All else is
            computed in float32.
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
        """The inputs that are raw maps, one per level; none where a model takes something else."""
        return tuple(spec for spec in self.inputs if spec.name.startswith("feat_"))

    @property
    def default_outputs(self) -> tuple[str, ...]:
        """Names of the outputs that are sent when none is asked for."""
        return tuple(spec.name for spec in self.outputs if not spec.heavy)

    @property
    def gains(self) -> tuple[float, ...]:
        """Weights of box, cls and dfl in the loss; of models that have one."""
        gains = self.hyperparameters["gains"]
        return tuple(float(gains[term]) for term in ("box", "cls", "dfl"))

    def save(self, path: Path) -> None:
        """Write the contract as JSON, through a temporary file so that no half of one is ever seen."""
        write_json(path, dataclasses.asdict(self))


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write through a temporary file beside it, so that no half of one is ever seen."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_specs(rows: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    """Tensors as ``dataclasses.asdict`` wrote them."""
    return tuple(TensorSpec(**{**row, "axes": tuple(row["axes"])}) for row in rows)


def read_versioned(path: Path, newest: int, remedy: str) -> dict[str, Any]:
    """Read a JSON object that names the version of its format.

    Args:
        path: The file.
        newest: Version that this release writes.
        remedy: What makes a good one.

    Raises:
        ContractError: It is not JSON, has no version, or a newer one.
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
        ContractError: It is not JSON, not a contract, or of a newer format than this release reads.
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
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        OSError: It cannot be read.
    """
    with _regular(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _regular(path: Path) -> Path:
    """The path of a file, which is not opened if it is none: a FIFO would be waited for, a device may never end.

    Raises:
        OSError: It is missing or no regular file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is no regular file")
    return path


def find_contracts(folder: Path) -> list[tuple[Path, Contract]]:
    """All contracts in a folder with the files they describe, each file checked against its hash.

    Args:
        folder: Where ``yolo-assigner export onnx --out`` wrote.

    Returns:
        Pairs of the model file's path and its contract, ordered by name.

    Raises:
        ContractError: There is none, one is unreadable, or a file is missing or not the one that was described.
    """
    found, damaged = scan_contracts(folder)
    for error in damaged.values():
        raise error
    return found


def scan_contracts(folder: Path) -> tuple[list[tuple[Path, Contract]], dict[str, ContractError]]:
    """As :func:`find_contracts`, but what cannot be used does not hide the rest.

    Returns:
        Pairs of the model file's path and its contract, ordered by name; and the error of each other one by its name.

    Raises:
        ContractError: There is no contract at all.
    """
    found, damaged = [], {}
    for name, path in contract_paths(folder).items():
        try:
            found.append(open_contract(path))
        except ContractError as error:
            damaged[name] = error
    return found, damaged


def contract_paths(folder: Path) -> dict[str, Path]:
    """Find the contracts of a folder without opening them.

    Returns:
        Paths of the contracts by the names of their models, ordered by name.

    Raises:
        ContractError: There is no contract at all.
    """
    paths = {path.stem: path for path in sorted(folder.glob("*.json")) if not path.name.endswith(ENGINE_SUFFIX)}
    if not paths:
        raise ContractError(
            f"no contract (*.json) in {folder}; write one with `yolo-assigner export onnx --model loss --out {folder}`"
        )
    return paths


def open_contract(path: Path) -> tuple[Path, Contract]:
    """Read a contract and check the model file that it describes against its hash.

    Args:
        path: The contract's JSON file.

    Returns:
        Path of the model file, and the contract.

    Raises:
        ContractError: The contract is unreadable, or the file is missing or not the one that was described.
    """
    contract = load_contract(path)
    if contract.name != path.stem:  # two contracts of one name would be one model
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
