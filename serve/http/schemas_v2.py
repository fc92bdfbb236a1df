"""The JSON of ``/v2`` and of errors, for the OpenAPI document alone; requests are read by ``wire.request``.

A key of a request whose value is null counts as absent.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from yolo_assigner.serve.wire.dtypes import NUMPY_TYPES

Size = Annotated[int, Field(ge=0)]
Datatype = Annotated[str, Field(json_schema_extra={"enum": list(NUMPY_TYPES)})]


class Error(BaseModel):
    """Why a request was refused, and what to do about it."""

    error: str


class Live(BaseModel):
    """The process answers."""

    live: bool


class Ready(BaseModel):
    """Every model can be used."""

    ready: bool


class ModelReady(Ready):
    """One model can be used."""

    name: str


class ServerMetadata(BaseModel):
    """The server."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """A tensor of a model; -1 stands for an axis of any size."""

    name: str
    datatype: Datatype
    shape: list[Annotated[int, Field(ge=-1)]]
    parameters: dict[str, Any] = Field({}, description="`default` is false of an output that is only sent when named")


class ModelMetadata(BaseModel):
    """A model."""

    name: str
    versions: list[str]
    platform: str = Field(description="What runs it; empty while that is not decided")
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class TensorConfig(BaseModel):
    """A tensor in Triton's terms."""

    name: str
    data_type: str
    dims: list[Annotated[int, Field(ge=-1)]]


class ModelParameter(BaseModel):
    """A hyper-parameter in Triton's terms."""

    string_value: str


class ModelConfig(BaseModel):
    """A model in Triton's terms."""

    name: str
    platform: str
    max_batch_size: Size
    input: list[TensorConfig]
    output: list[TensorConfig]
    parameters: dict[str, ModelParameter]


class ModelState(BaseModel):
    """A model's line in the index."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class ModelStatistics(BaseModel):
    """What a model has done."""

    name: str
    version: str
    last_inference: Size = Field(description="Milliseconds since 1970, 0 for never")
    inference_count: Size
    execution_count: Size
    inference_stats: dict[str, dict[str, Size]] = Field(description="By phase: `count` and `ns`")
    batch_stats: list[dict[str, Any]]


class Statistics(BaseModel):
    """What the models have done."""

    model_stats: list[ModelStatistics]


class InputTensor(BaseModel):
    """An input. Its values are in `data`, behind the JSON, or in shared memory."""

    name: str
    shape: list[Size]
    datatype: Datatype
    parameters: dict[str, Any] | None = Field(
        None, description="`binary_data_size`, or `shared_memory_region` and its size"
    )
    data: list[Any] | None = Field(None, description="Row by row, flat or nested like the shape")


class RequestedOutput(BaseModel):
    """A requested output."""

    name: str
    parameters: dict[str, Any] | None = Field(None, description="`binary_data`, or `shared_memory_region` and its size")


class InferRequest(BaseModel):
    """Inputs and requested outputs."""

    id: str | None = Field(None, description="Comes back unchanged")
    parameters: dict[str, Any] | None = Field(
        None, description="`binary_data_output`, `timeout` in microseconds, `min_box_side`"
    )
    inputs: list[InputTensor]
    outputs: list[RequestedOutput] | None = Field(None, description="All but the heavy ones when none is named")


class OutputTensor(BaseModel):
    """An output; NaN and the infinities are `null` in `data`."""

    name: str
    datatype: Datatype
    shape: list[Size]
    parameters: dict[str, Any] = {}
    data: list[Any] = []


class InferReply(BaseModel):
    """Outputs in the order in which they were asked for."""

    model_name: str
    model_version: str
    id: str = ""
    outputs: list[OutputTensor]


class IndexRequest(BaseModel):
    """Which models to list."""

    ready: bool | None = Field(None, description="Only those that can be used; all when left out")


class RegionRequest(BaseModel):
    """A part of a POSIX shared memory object."""

    key: str = Field(description="The object's, which begins as the server demands")
    offset: Size | None = None
    byte_size: Annotated[int, Field(ge=1)]


class Region(BaseModel):
    """A registered region."""

    name: str
    key: str
    offset: Size
    byte_size: Size


class Nothing(BaseModel):
    """An empty object."""
