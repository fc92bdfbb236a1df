"""What the wire costs through shared memory: the same request over the socket and in regions, to the same server.

``python -m benchmarks.transport_shm``. The model computes nothing. ``copied`` includes the client's copy of its tensors
into shared memory, ``in_place`` is for a client whose tensors lie there already. Linux only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import median_ratio
from benchmarks.transport import MB, SIZES, in_turns, machine
from benchmarks.wire_client import (
    WORKER,
    Connection,
    Payload,
    binary_payload,
    contract,
    request_arrays,
    running,
    serve,
    setup,
)
from yolo_assigner.serve.app import create_app
from yolo_assigner.serve.process.supervisor import RemoteService
from yolo_assigner.serve.wire.dtypes import Array, wire_name

PREFIX = "yolo-assigner-benchmark-"
RESULTS = Path(__file__).parent / "results" / "transport_shm.json"


def main() -> int:
    """Measure, write the JSON, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transport_shm", description=__doc__)
    parser.add_argument("--turns", type=int, default=25, help="turns that count, after three that do not")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--serve", action="store_true", help="be the server that is measured")
    options = parser.parse_args()
    if options.serve:
        serve(create_app(RemoteService([contract()], setup(PREFIX), WORKER)))
        return 0
    times = measure(options.turns)
    options.out.write_text(json.dumps({"machine": machine(), "times": times}, indent=2) + "\n", encoding="utf-8")
    print("| request | socket, ms | copied, ms | in place, ms | copied, times faster | in place, times faster |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, row in times.items():
        milliseconds = " | ".join(f"{row[f'{way}_ms']:.2f}" for way in ("socket", "copied", "in_place"))
        print(f"| {name} | {milliseconds} | {row['copied_times_faster']:.1f} | {row['in_place_times_faster']:.1f} |")
    return 0


def measure(turns: int) -> dict[str, dict[str, float]]:
    """By size: median milliseconds of each way, and how many times the socket's time is theirs, turn by turn."""
    with running("--serve", "benchmarks.transport_shm") as connection:
        return {name: _measure(connection, images, turns) for name, images in SIZES.items()}


def _measure(connection: Connection, images: int, turns: int) -> dict[str, float]:
    over_socket, arrays = binary_payload(images), request_arrays(images)
    with region(connection, arrays) as (in_region, views):

        def copied() -> None:
            for name, array in arrays.items():
                np.copyto(views[name], array)
            connection.send(in_region)

        runs: dict[str, Callable[[], Any]] = {
            "socket": lambda: connection.send(over_socket),
            "copied": copied,
            "in_place": lambda: connection.send(in_region),
        }
        times = in_turns(runs, turns, f"{over_socket.size / MB:.0f} MB")
    return {
        **{f"{way}_ms": 1000 * statistics.median(values) for way, values in times.items()},
        **{f"{way}_times_faster": median_ratio(times["socket"], times[way]) for way in ("copied", "in_place")},
    }


@contextmanager
def region(connection: Connection, arrays: dict[str, Array]) -> Iterator[tuple[Payload, dict[str, Array]]]:
    """An object that holds the arrays, registered: the request for them, and views of them to be written to."""
    memory = SharedMemory(f"{PREFIX}inputs", create=True, size=sum(array.nbytes + 64 for array in arrays.values()))
    rows, views, end = [], {}, 0
    try:
        for name, array in arrays.items():
            place = {"region": "inputs", "byte_size": array.nbytes, "offset": end}
            parameters = {f"shared_memory_{key}": value for key, value in place.items()}
            row = {"name": name, "datatype": wire_name(array.dtype), "shape": array.shape, "parameters": parameters}
            views[name] = np.ndarray(array.shape, array.dtype, memory.buf, end)
            views[name][...] = array
            rows.append(row)
            end += -(-array.nbytes // 64) * 64
        about = {"key": memory.name, "byte_size": memory.size}
        connection.send(_post("systemsharedmemory/region/inputs/register", about))
        yield _post("models/loss/infer", {"inputs": rows, "outputs": [{"name": "loss"}]}), views
        connection.send(_post("systemsharedmemory/unregister", {}))
    finally:
        views.clear()  # an object with views of it cannot be closed
        memory.close()
        memory.unlink()


def _post(path: str, document: Any) -> Payload:
    text = json.dumps(document).encode()
    head = f"POST /v2/{path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(text)}\r\n\r\n"
    return Payload(head.encode(), [memoryview(text)])


if __name__ == "__main__":
    sys.exit(main())
