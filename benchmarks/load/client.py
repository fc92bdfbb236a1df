"""Clients of ``benchmarks.load``: they send cases, hang up, set deadlines, and compare every bit of the answers."""

from __future__ import annotations

import asyncio
import mmap
import multiprocessing
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from benchmarks.common.client import Answer, Payload, Streams, exchange, infer_head
from benchmarks.load.cases import OWNER, Case, region_of, written

REPLY_SECONDS = 120.0
NICENESS = 10  # of processes of clients; in production clients have cores of their own
FORK = multiprocessing.get_context("fork")  # the clients share the prepared requests and the memory of this process
# Shares of requests that are not sent and waited for as usual.
HANG_UP, DEADLINE, TOO_LARGE = 0.03, 0.05, 0.01


class Prepared(NamedTuple):
    """A case with the answer that the idle server gave to it.

    Attributes:
        case: The case.
        payload: Its request.
        urgent: The request with a deadline, or None where it is not sent with one.
        reply: Body of the reply.
        outputs: Bytes that the reply leaves in shared memory, by output.
    """

    case: Case
    payload: Payload
    urgent: Payload | None
    reply: bytes
    outputs: Mapping[str, bytes]


class Plan(NamedTuple):
    """Instructions for all clients.

    Attributes:
        port: Port of the server.
        cases: Requests to draw from.
        limit: Bytes of the largest allowed body.
        regions: Shared memory by region.
        running: Tells whether clients go on.
        plain: Clients only send and wait, and refusals count as wrong.
        resend: A request on a reused connection that ends before the first byte of a reply is sent once more on a new
            connection, as HTTP libraries do.
    """

    port: int
    cases: Sequence[Prepared]
    limit: int
    regions: Mapping[str, mmap.mmap]
    running: Callable[[], bool]
    plain: bool = False
    resend: bool = False


@dataclass
class Tally:
    """Counts of the clients.

    Attributes:
        outcomes: Number of requests by status, or by what the client did.
        replies: Seconds from the request's headers to the reply's, of results.
        refusals: Status and the same seconds, of refusals.
        wrong: Descriptions of answers that differ from the expected ones.
        lost: Descriptions of requests without an answer.
        resent: Number of requests that were sent twice.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    replies: list[float] = field(default_factory=list)
    refusals: list[tuple[int, float]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    resent: int = 0

    def add(self, other: Tally) -> None:
        """Add the counts of another."""
        self.outcomes += other.outcomes
        self.replies += other.replies
        self.refusals += other.refusals
        self.wrong += other.wrong
        self.lost += other.lost
        self.resent += other.resent


class Client:
    """A client with one connection, which is opened again after it ended.

    Args:
        plan: Instructions.
        owner: Number of the connection; its outputs in shared memory lie in a region of this number.
        tally: Counts to add to.
    """

    def __init__(self, plan: Plan, owner: int, tally: Tally) -> None:
        self._plan, self._tally = plan, tally
        self._owner = region_of(owner)
        self._random = random.Random(owner)  # noqa: S311 - reproducible, not secret
        self._streams: Streams | None = None
        self._shares = [prepared.case.share for prepared in plan.cases]

    async def run(self) -> None:
        """Send one request after the other until the plan ends."""
        while self._plan.running():
            await self.once(plain=self._plan.plain)
        self.close()

    async def once(self, *, plain: bool) -> None:
        """Send one request.

        Args:
            plain: Send and wait; otherwise the client may also hang up, set a deadline or send too much.
        """
        prepared = self._random.choices(self._plan.cases, self._shares)[0]
        chance = 1.0 if plain else self._random.random()
        try:
            async with asyncio.timeout(REPLY_SECONDS):
                if chance < TOO_LARGE:
                    await self._too_large()
                elif chance < TOO_LARGE + HANG_UP and not prepared.outputs:
                    await self._hang_up(prepared.payload)
                elif chance < TOO_LARGE + HANG_UP + DEADLINE and prepared.urgent is not None:
                    await self._judge(prepared, await self._exchange(prepared.urgent), (503, 504))
                else:
                    await self._ask(prepared)
        except (OSError, EOFError, TimeoutError) as error:
            self.close()
            self._tally.lost.append(f"{prepared.case.name}: {type(error).__name__} {error}")

    def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None

    async def _ask(self, prepared: Prepared) -> None:
        payload, memory = prepared.payload, None
        if prepared.outputs:
            payload = payload._replace(body=(bytes(payload.body[0]).replace(OWNER.encode(), self._owner.encode()),))
            memory = self._plan.regions[self._owner]
            sizes = [len(output) for output in prepared.outputs.values()]
            memory[: sum(sizes)] = b"\xaa" * sum(sizes)  # bytes that stay so were not written
        answer = await self._exchange(payload)
        if await self._judge(prepared, answer, () if self._plan.plain else (503,)) and memory is not None:
            for name, output in zip(prepared.outputs, written(memory, sizes), strict=True):
                if output != prepared.outputs[name]:
                    self._tally.wrong.append(f"{prepared.case.name}: {name} in shared memory")

    async def _judge(self, prepared: Prepared, answer: Answer, allowed: Sequence[int]) -> bool:
        """Count an answer, and tell whether it is a result."""
        self._tally.outcomes[str(answer.status)] += 1
        if answer.status == 200:
            self._tally.replies.append(answer.seconds)
        if answer.status in allowed:
            self._tally.refusals.append((answer.status, answer.seconds))
            await asyncio.sleep(self._random.uniform(0.01, 0.1))  # clients shall retry later
        elif answer.status != 200:
            self._tally.wrong.append(f"{prepared.case.name}: {answer.status} {answer.body[:200]!r}")
        elif (fault := self.fault(prepared, answer)) is not None:
            self._tally.wrong.append(f"{prepared.case.name}: {fault}")
        return answer.status == 200

    def fault(self, prepared: Prepared, answer: Answer) -> str | None:
        """Tell what is wrong with a result, or None."""
        same = answer.body.replace(self._owner.encode(), OWNER.encode()) == prepared.reply
        return None if same else "another result than alone"

    async def _too_large(self) -> None:
        """Send a body over the limit: the server must refuse, read it all, and keep the connection usable."""
        size = self._plan.limit + 1
        answer = await self._exchange(Payload(infer_head("loss", size), (bytes(size),)))
        self._tally.outcomes[str(answer.status)] += 1
        if answer.status in (413, 503):
            self._tally.refusals.append((answer.status, answer.seconds))
        else:
            self._tally.wrong.append(f"a body over the limit: {answer.status} {answer.body[:200]!r}")

    async def _hang_up(self, payload: Payload) -> None:
        """Hang up within the body, or after it and before the reply."""
        _, writer = await self._connected()
        left = int(payload.size * self._random.choice((self._random.random(), 1.0)))
        writer.write(payload.head)
        for part in payload.body:
            writer.write(part[:left])
            left -= min(left, len(part))
            await writer.drain()
        await asyncio.sleep(self._random.uniform(0, 0.03))
        writer.transport.abort() if self._random.random() < 0.5 else writer.close()
        self._streams = None
        self._tally.outcomes["hung up"] += 1

    async def _connected(self) -> Streams:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._plan.port, limit=2**20)
        return self._streams

    async def _exchange(self, payload: Payload) -> Answer:
        again = self._plan.resend and self._streams is not None
        try:
            return await self._exchange_once(payload)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            if not again or (isinstance(error, asyncio.IncompleteReadError) and error.partial):
                raise
        self.close()
        self._tally.resent += 1
        return await self._exchange_once(payload)

    async def _exchange_once(self, payload: Payload) -> Answer:
        answer = await exchange(await self._connected(), payload)
        if answer.closes:
            self.close()
        return answer


async def run_all(clients: Iterable[Client]) -> None:
    """Run clients concurrently until their plan ends."""
    await asyncio.gather(*(client.run() for client in clients))


def fork(work: Callable[..., None], *values: Any) -> Connection:
    """Start a process that ends by itself, and return the connection that receives what it sends.

    Args:
        work: Runs in the process; takes the values, and then the connection to send its result through.
        values: First arguments of the function.
    """
    ours, theirs = FORK.Pipe(duplex=False)
    FORK.Process(target=work, args=(*values, theirs), daemon=True).start()
    theirs.close()  # otherwise a process that failed would be waited for without end
    return ours
