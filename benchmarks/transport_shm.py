"""Cost of shared memory: the same request over the socket and in regions, to the same server.

``python -m benchmarks.transport_shm``. The model computes nothing. ``copied`` includes the client's copy of its tensors
into shared memory; ``in_place`` is for a client whose tensors already lie there. Linux only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np

from benchmarks.common.client import Payload, json_payload, register, send
from benchmarks.common.report import RESULTS, machine, table, write_json
from benchmarks.common.timing import median_ratio, medians_ms, take_turns
from benchmarks.transport import MB, SIZES, WARM_UP, sending
from benchmarks.transport_server import PREFIX, Running, binary_payload, described, request_arrays, running
from tests.serve.hostile.wire import Wire
from yolo_assigner.serve.wire.dtypes import Array

REGION = "inputs"


def main() -> int:
    """Measure, write the JSON, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transport_shm", description=__doc__)
    parser.add_argument("--turns", type=int, default=25, help="turns that count, after three that do not")
    parser.add_argument("--out", type=Path, default=RESULTS / "transport_shm.json")
    options = parser.parse_args()
    with running("shared") as server:
        times = {name: measure(server, images, options.turns) for name, images in SIZES.items()}
    write_json(options.out, {"machine": machine(), "times": times})
    ways = ("socket, ms", "copied, ms", "in place, ms", "copied, times faster", "in place, times faster")
    rows = [
        (name, *(f"{row[f'{way}_ms']:.2f}" for way in ("socket", "copied", "in_place")),
         *(f"{row[f'{way}_times_faster']:.1f}" for way in ("copied", "in_place")))
        for name, row in times.items()
    ]  # fmt: skip
    print(table(("request", *ways), rows))
    return 0


def measure(server: Running, images: int, turns: int) -> dict[str, float]:
    """Median milliseconds of each way, and the median ratio of the socket's time to that of the others."""
    over_socket, arrays = binary_payload(images), request_arrays(images)
    with registered(server.wire, arrays) as (in_region, views):

        def copied() -> None:
            for name, array in arrays.items():
                np.copyto(views[name], array)
            send(server.wire, in_region)

        runs = {"socket": sending(server, over_socket), "copied": copied, "in_place": sending(server, in_region)}
        times = take_turns(runs, turns, WARM_UP, f"{over_socket.size / MB:.0f} MB")
    ratios = {f"{way}_times_faster": median_ratio(times["socket"], times[way]) for way in ("copied", "in_place")}
    return medians_ms(times) | ratios


@contextmanager
def registered(wire: Wire, arrays: dict[str, Array]) -> Iterator[tuple[Payload, dict[str, Array]]]:
    """Register a region that holds the arrays: the request for them, and writable views of them by name."""
    memory = SharedMemory(f"{PREFIX}inputs", create=True, size=sum(array.nbytes + 64 for array in arrays.values()))
    rows, views, end = [], {}, 0
    try:
        for name, array in arrays.items():
            place = {"region": REGION, "byte_size": array.nbytes, "offset": end}
            rows.append(described(name, array, parameters={f"shared_memory_{key}": at for key, at in place.items()}))
            views[name] = np.ndarray(array.shape, array.dtype, memory.buf, end)
            views[name][...] = array
            end += -(-array.nbytes // 64) * 64
        register(wire, REGION, memory.name, memory.size)
        yield json_payload("models/loss/infer", {"inputs": rows, "outputs": [{"name": "loss"}]}), views
        send(wire, json_payload("systemsharedmemory/unregister", {}))
    finally:
        views.clear()  # an object with views of it cannot be closed
        memory.close()
        memory.unlink()


if __name__ == "__main__":
    sys.exit(main())
