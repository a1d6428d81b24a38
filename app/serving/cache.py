"""Answers that were given before, by the exact bytes of the question, and one run for questions that are asked at once.

The key is 128 bits of BLAKE2b over model, version, variant and every tensor's type, shape and bytes: among 2^64
questions two would share one by chance. Only the tensors count: what else a request holds (its id, the outputs that it
wants, its deadline) is not part of what the model answers.

Keys of large questions are made in a thread, and copies of large answers too.
"""

import asyncio
import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace

import numpy as np

from app.core.errors import DeadlineExceeded
from app.serving.types import Answer, Tensors
from app.telemetry.metrics import ModelMetrics

# (inputs, rows, deadline, priority) → the model's answer.
Infer = Callable[[Tensors, int, float, int], Awaitable[Answer]]
_KEY_BYTES = 16
_OVERHEAD_BYTES = 512  # of an entry, beside its arrays
# What the event loop hashes or copies itself: a quarter of a millisecond.
_INLINE_BYTES = 256 * 1024
_INLINE_TEXTS = 2048
_TEXTS_AT_ONCE = 16 * 1024  # no other thread goes on while a list is made of them, or they are joined


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
        """As the batcher's; `cached` of the answer says that it took no run of its own. A kept one is there at once.

        That of a large question is not, since its key is made in a thread.
        """
        if not _are_small(inputs):
            return self._infer_large(inputs, rows, deadline, priority)
        begun = time.perf_counter()
        key = self._key(inputs)
        kept = self._look_up(key, begun)
        if kept is not None:
            answer: asyncio.Future[Answer] = self._loop.create_future()
            answer.set_result(kept)
            return answer
        return self._ask(key, inputs, rows, deadline, priority)

    async def _infer_large(self, inputs: Tensors, rows: int, deadline: float, priority: int) -> Answer:
        begun = time.perf_counter()
        key = await asyncio.to_thread(self._key, inputs)
        return self._look_up(key, begun) or await self._ask(key, inputs, rows, deadline, priority)

    def _look_up(self, key: bytes, begun: float) -> Answer | None:
        """The kept answer, now the youngest; counted, with the time since `begun`."""
        kept = self._kept.get(key)
        self._metrics.looked_up(hit=kept is not None, seconds=time.perf_counter() - begun)
        if kept is None:
            return None
        self._kept.move_to_end(key)
        return kept[0]

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
            outputs = shared.run.result().outputs
            if _are_small(outputs):
                self._keep(key, _copied(outputs, self._max_bytes))
            else:
                copying = self._loop.run_in_executor(None, _copied, outputs, self._max_bytes)
                copying.add_done_callback(lambda done: self._keep(key, done.result()))

    def _keep(self, key: bytes, copied: tuple[Tensors, int] | None) -> None:
        if copied is None or key in self._kept:
            return
        outputs, size = copied
        self._kept[key] = Answer(outputs, 0.0, 0.0, 0.0, cached=True), size
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, (_, freed) = self._kept.popitem(last=False)
            self._bytes -= freed

    def _key(self, inputs: Tensors) -> bytes:
        digest = self._identity.copy()
        for tensor in inputs:
            digest.update(f"{tensor.dtype.str}{tensor.shape}".encode())
            if tensor.dtype.hasobject:
                flat = tensor.ravel()
                for at in range(0, flat.size, _TEXTS_AT_ONCE):
                    texts = flat[at : at + _TEXTS_AT_ONCE].tolist()
                    # Lengths, so that no other texts are the same when they are joined.
                    digest.update(f"{[*map(len, texts)]}{''.join(texts)}".encode())
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


def _are_small(tensors: Tensors) -> bool:
    """True if the event loop may hash or copy them; how long texts are is asked only of a few."""
    size = 0
    for tensor in tensors:
        size += tensor.nbytes
        if tensor.dtype.hasobject:
            if tensor.size > _INLINE_TEXTS:
                return False
            size += sum(map(len, tensor.ravel().tolist()))
    return size <= _INLINE_BYTES


def _copied(outputs: Tensors, most: int) -> tuple[Tensors, int] | None:
    """Copies, and the bytes of an entry of them; None if these are more than `most`.

    The outputs may be parts of a batch's, all of which they would keep in memory.
    """
    size = sum(output.nbytes for output in outputs) + _OVERHEAD_BYTES
    for output in outputs:
        if output.dtype.hasobject and size <= most:
            size += sum(len(text) for text in output.ravel().tolist())
    return None if size > most else (tuple(output.copy() for output in outputs), size)
