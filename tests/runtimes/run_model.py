"""Run one model on stored batches; needs numpy, safetensors and onnxruntime or openvino, nothing of this project.

``python run_model.py ENGINE MODEL OUT BATCH...``: each BATCH is a safetensors file of inputs, its outputs go under the
same name to OUT. One JSON line on stdout announces each batch, another one says when it fails, so whoever reads them
knows which batch ended the process.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

Feed = dict[str, Any]


def load_onnxruntime(model: str) -> Callable[[Feed], Feed]:
    """Load a model in ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, feed), strict=True))


def load_openvino(model: str) -> Callable[[Feed], Feed]:
    """Load a model in OpenVINO on the CPU; without the hint it may compute in bfloat16."""
    import openvino

    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = {name: output for output in compiled.outputs for name in output.names}

    def run(feed: Feed) -> Feed:
        results = compiled(feed)
        return {name: np.array(results[output]) for name, output in names.items()}

    return run


def main(engine: str, model: str, out: str, *batches: str) -> None:
    """Run every batch and write what comes out."""
    load = {"onnxruntime": load_onnxruntime, "openvino": load_openvino}[engine]
    try:
        run = load(model)
    except Exception as error:
        sys.exit(str(error))
    for batch in batches:
        name = Path(batch).name
        print(json.dumps({"batch": name}), flush=True)
        try:
            outputs = {key: np.require(value, requirements="C") for key, value in run(load_file(batch)).items()}
            save_file(outputs, Path(out, name))
        except Exception as error:
            print(json.dumps({"batch": name, "error": str(error)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
