"""Answers that were given before, by the exact bytes of the question, and one run for questions that are asked at once.

The key is 128 bits of BLAKE2b over model, version, variant and every tensor's type, shape and bytes: among 2^64
questions two would share one by chance. Only the tensors count: what else a request holds (its id, the outputs that it
wants, its deadline) is not part of what the model answers.
"""

import asyncio
import hashlib
import math
import struct
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace

import numpy as np

from app.core.errors import DeadlineExceeded
from app.serving.types import Answer, Array, Tensors
from app.telemetry.metrics import ModelMetrics

# (inputs, rows, deadline, priority) → the model's answer.
Infer = Callable[[Tensors, int, float, int], Awaitable[Answer]]
_KEY_BYTES = 16
_OVERHEAD_BYTES = 512  # of an entry, beside its arrays


class AnswerCache:
    """The least recently asked answers go first once they hold more than `max_bytes`."""

    def __init__(self, identity: bytes, infer: Infer, max_bytes: int, metrics: ModelMetrics) -> None:
        self._identity = hashlib.blake2b(identity, digest_size=_KEY_BYTES)
        self._infer = infer
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._kept: OrderedDict[bytes, tuple[Answer, int]] = OrderedDict()
        self._running: dict[bytes, _Shared] = {}
        self._bytes = 0
        self._loop = asyncio.get_running_loop()

    def infer(
        self, inputs: Tensors, rows: int, deadline: float = math.inf, priority: int = 0
    ) -> "Coroutine[None, None, Answer] | asyncio.Future[Answer]":
        """As the batcher's; `cached` of the answer says that it took no run of its own. A kept one is there at once."""
        begun = time.perf_counter()
        key = self._key(inputs)
        kept = self._kept.get(key)
        self._metrics.looked_up(hit=kept is not None, seconds=time.perf_counter() - begun)
        if kept is not None:
            self._kept.move_to_end(key)
            answer: asyncio.Future[Answer] = self._loop.create_future()
            answer.set_result(kept[0])
            return answer
        return self._ask(key, inputs, rows, deadline, priority)

    async def _ask(self, key: bytes, inputs: Tensors, rows: int, deadline: float, priority: int) -> Answer:
        while (shared := self._running.get(key)) is not None:
            try:
                return replace(await self._wait(key, shared, deadline), cached=True)
            except DeadlineExceeded:  # ours, the run's own, or that of the one who asked first: ours may be later
                now = time.perf_counter()
                if deadline <= now or now < shared.deadline:
                    raise
        run = asyncio.ensure_future(self._infer(inputs, rows, deadline, priority))
        shared = self._running[key] = _Shared(run, deadline)
        shared.run.add_done_callback(lambda _: self._done(key, shared))
        return await self._wait(key, shared, deadline)

    async def _wait(self, key: bytes, shared: "_Shared", deadline: float) -> Answer:
        """The answer of a run that several callers may wait for: it is cancelled when the last of them has left."""
        shared.callers += 1
        try:
            if deadline == math.inf:
                return await asyncio.shield(shared.run)
            async with asyncio.timeout(max(0.0, deadline - time.perf_counter())):
                return await asyncio.shield(shared.run)
        except TimeoutError:
            raise DeadlineExceeded("the request's time ran out while it waited") from None
        finally:
            shared.callers -= 1
            if not shared.callers and not shared.run.done():
                del self._running[key]  # at once: who comes now must not join it
                shared.run.cancel()

    def _done(self, key: bytes, shared: "_Shared") -> None:
        if self._running.get(key) is shared:
            del self._running[key]
        if not shared.run.cancelled() and shared.run.exception() is None:
            self._keep(key, shared.run.result())

    def _keep(self, key: bytes, answer: Answer) -> None:
        # Copies: the outputs may be parts of a batch's, all of which they would keep in memory.
        outputs = tuple(output.copy() for output in answer.outputs)
        size = sum(map(_size, outputs)) + _OVERHEAD_BYTES
        if size > self._max_bytes or key in self._kept:
            return
        self._kept[key] = Answer(outputs, 0.0, 0.0, 0.0, cached=True), size
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, (_, freed) = self._kept.popitem(last=False)
            self._bytes -= freed

    def _key(self, inputs: Tensors) -> bytes:
        digest = self._identity.copy()
        for tensor in inputs:
            digest.update(f"{tensor.dtype.str}{tensor.shape}".encode())
            if tensor.dtype == object:
                for element in tensor.ravel():
                    text = str(element).encode()
                    digest.update(struct.pack("<I", len(text)))
                    digest.update(text)
            else:
                digest.update(np.ascontiguousarray(tensor).data)
        return digest.digest()


class _Shared:
    """A run, the deadline of the one who asked for it, and how many wait for it."""

    __slots__ = ("callers", "deadline", "run")

    def __init__(self, run: "asyncio.Future[Answer]", deadline: float) -> None:
        self.run = run
        self.deadline = deadline
        self.callers = 0


def _size(output: Array) -> int:
    return output.nbytes + (sum(len(str(text)) for text in output.ravel()) if output.dtype == object else 0)
