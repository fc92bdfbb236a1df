"""Each device in turn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

NEEDED = "needs a GPU; `make test-gpu` runs it on a machine that has one"
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason=NEEDED)]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=needs_gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The CPU, where the same code is run small, and a GPU, in a stream of its own as graphs need it."""
    if request.param == "cpu":
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # several would wait for one another longer than they compute
        yield torch.device("cpu")
        torch.set_num_threads(threads)
        return
    with torch.cuda.stream(torch.cuda.Stream()):
        yield torch.device("cuda")
        torch.cuda.synchronize()
