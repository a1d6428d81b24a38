"""Group commit: callers that come while one transaction runs share the next, and what a transaction costs."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from app.core.errors import Unavailable

Ask = TypeVar("Ask")
Answer = TypeVar("Answer")
MOST = 100  # asks of one group: how long one transaction may keep other writers waiting


class Together(Generic[Ask, Answer]):
    """Answers asks in groups, one at a time: a group is whatever has come while the last one was answered.

    `answer` runs one transaction, and returns an answer or an error for each ask, in their order.
    """

    def __init__(self, answer: Callable[[Sequence[Ask]], Awaitable[Sequence[Answer | Exception]]]) -> None:
        self._answer = answer
        self._waiting: deque[tuple[Ask, asyncio.Future[Answer]]] = deque()
        self._running: asyncio.Task[None] | None = None

    async def ask(self, ask: Ask) -> Answer:
        """The answer, once it is committed. A caller that is cancelled hurts no other."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((ask, future))
        if self._running is None:
            # A task of its own: were it the first caller's, cancelling that caller would cancel the group.
            self._running = asyncio.create_task(self._run(), name="group commit")
        return await future

    async def close(self) -> None:
        """Wait until all that have asked are answered."""
        if self._running is not None:
            await asyncio.wait([self._running])

    async def _run(self) -> None:
        try:
            while self._waiting:
                size = min(len(self._waiting), MOST)
                await self._settle([self._waiting.popleft() for _ in range(size)])
        finally:
            self._running = None

    async def _settle(self, group: list[tuple[Ask, asyncio.Future[Answer]]]) -> None:
        group = [(ask, future) for ask, future in group if not future.done()]  # else: cancelled
        try:
            answers = await self._answer([ask for ask, _ in group]) if group else []
        except Exception as error:  # noqa: BLE001 - whatever it is, the callers get it
            if len(group) > 1 and not isinstance(error, Unavailable):
                # Nothing was committed. Each alone, so that one that the database does not take spoils no other.
                for one in group:
                    await self._settle([one])
                return
            answers = [error] * len(group)
        for (_, future), answer in zip(group, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
