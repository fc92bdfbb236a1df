"""One of the clients of ``benchmarks.load``: sends cases, hangs up, sets deadlines, and looks at every bit it gets."""

from __future__ import annotations

import asyncio
import mmap
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.load.cases import OWNER, Case, Payload, head_of
from benchmarks.load.memory import region_of, written

PIECE = 2**18  # bytes that are handed to a connection at once
REPLY_SECONDS = 120.0
REFUSED = (413, 503, 504)
# How often a client does something else than sending a case and waiting.
HANG_UP, DEADLINE, TOO_LARGE = 0.03, 0.05, 0.01


class Prepared(NamedTuple):
    """A case with the answer that the server gave to it alone.

    Attributes:
        case: What is asked.
        payload: The request.
        urgent: The same with a deadline; None where it is not used so.
        reply: The body of its reply.
        outputs: What the reply leaves in shared memory, by output.
    """

    case: Case
    payload: Payload
    urgent: Payload | None
    reply: bytes
    outputs: Mapping[str, bytes]


class Plan(NamedTuple):
    """What all clients need to know.

    Attributes:
        port: Of the server.
        cases: What can be asked.
        limit: Bytes of the largest body.
        regions: Shared memory by region.
        running: Whether clients go on.
        plain: Clients do nothing but ask and wait, and no answer but a result is good.
        resend: A request on a connection that was used before, and ends before the first byte of a reply, is sent once
            more on a new one, as HTTP libraries do.
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
    """What clients saw.

    Attributes:
        outcomes: How many requests ended how.
        replies: Seconds from the headers sent to those of the reply, of results.
        refusals: Status, and seconds from the headers sent to those of the reply.
        wrong: Answers that are not those that were given alone.
        lost: Requests without an answer.
        resent: How many requests were sent twice.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    replies: list[float] = field(default_factory=list)
    refusals: list[tuple[int, float]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    resent: int = 0

    def add(self, other: Tally) -> None:
        """Count what others saw too."""
        self.outcomes += other.outcomes
        self.replies += other.replies
        self.refusals += other.refusals
        self.wrong += other.wrong
        self.lost += other.lost
        self.resent += other.resent


class Answer(NamedTuple):
    """A reply.

    Attributes:
        status: Of HTTP.
        body: All of it.
        began: When its request was begun, by the monotonic clock that all processes have.
        seconds: From then to the reply's headers.
    """

    status: int
    body: bytes
    began: float
    seconds: float


class Client:
    """One connection, opened again where it ended.

    Args:
        plan: What to do.
        owner: Number of the connection; its outputs in shared memory are in a region of this number.
        tally: Where to count.
    """

    def __init__(self, plan: Plan, owner: int, tally: Tally) -> None:
        self._plan, self._tally = plan, tally
        self._owner = region_of(owner)
        self._random = random.Random(owner)  # noqa: S311 - reproducible, not secret
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._shares = [prepared.case.share for prepared in plan.cases]

    async def run(self) -> None:
        """Send one request after the other."""
        while self._plan.running():
            await self.once(plain=self._plan.plain)
        self.close()

    async def once(self, *, plain: bool) -> None:
        """One request: ordinary and waited for, or of any kind."""
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
            payload = payload._replace(body=(payload.body[0].replace(OWNER.encode(), self._owner.encode()),))
            memory = self._plan.regions[self._owner]
            sizes = [len(output) for output in prepared.outputs.values()]
            memory[: sum(sizes)] = b"\xaa" * sum(sizes)  # what stays so was not written
        answer = await self._exchange(payload)
        if await self._judge(prepared, answer, () if self._plan.plain else (503,)) and memory is not None:
            for name, output in zip(prepared.outputs, written(memory, sizes), strict=True):
                if output != prepared.outputs[name]:
                    self._tally.wrong.append(f"{prepared.case.name}: {name} in shared memory")

    async def _judge(self, prepared: Prepared, answer: Answer, allowed: Sequence[int]) -> bool:
        """Count an answer; whether it is a result."""
        self._tally.outcomes[str(answer.status)] += 1
        if answer.status == 200:
            self._tally.replies.append(answer.seconds)
        if answer.status in allowed:
            self._tally.refusals.append((answer.status, answer.seconds))
            await asyncio.sleep(self._random.uniform(0.01, 0.1))  # then again, as it was told
        elif answer.status != 200:
            self._tally.wrong.append(f"{prepared.case.name}: {answer.status} {answer.body[:200]!r}")
        elif (fault := self.fault(prepared, answer)) is not None:
            self._tally.wrong.append(f"{prepared.case.name}: {fault}")
        return answer.status == 200

    def fault(self, prepared: Prepared, answer: Answer) -> str | None:
        """What is wrong with a result; None: nothing."""
        same = answer.body.replace(self._owner.encode(), OWNER.encode()) == prepared.reply
        return None if same else "another result than alone"

    async def _too_large(self) -> None:
        """The whole body goes out: the server has to read on after its reply, and the connection stays good."""
        size = self._plan.limit + 1
        answer = await self._exchange(Payload(head_of("loss", size), (bytes(size),), {}))
        self._tally.outcomes[str(answer.status)] += 1
        if answer.status in (413, 503):
            self._tally.refusals.append((answer.status, answer.seconds))
        else:
            self._tally.wrong.append(f"a body over the limit: {answer.status} {answer.body[:200]!r}")

    async def _hang_up(self, payload: Payload) -> None:
        """Leave in the middle of the body, or after it and before the reply."""
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

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
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
        reader, writer = await self._connected()
        began = time.perf_counter()
        sending = asyncio.create_task(_send(writer, payload))
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            seconds = time.perf_counter() - began
            length = int(head.split(b"\r\ncontent-length:", 1)[1].split(b"\r\n", 1)[0])
            body = await reader.readexactly(length)
            await sending
        finally:
            sending.cancel()
        if b"connection: close" in head:
            self.close()
        return Answer(int(head[9:12]), body, began, seconds)


async def run_all(clients: Iterable[Client]) -> None:
    """Run clients beside each other until their plan ends."""
    await asyncio.gather(*(client.run() for client in clients))


async def _send(writer: asyncio.StreamWriter, payload: Payload) -> None:
    writer.write(payload.head)
    for part in payload.body:
        view = memoryview(part)
        for start in range(0, len(part), PIECE):
            writer.write(view[start : start + PIECE])
            await writer.drain()
