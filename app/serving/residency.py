"""Which models are in memory, and which is to go when it is full.

The rule is GreedyDual-Size (P. Cao and S. Irani, "Cost-Aware WWW Proxy Caching Algorithms", USITS 1997), with the
measured seconds of a reload as cost and the measured bytes as size. A model's value is L + seconds / bytes at its last
use; the least valuable goes, and L becomes its value, so that what is not used any more ages. L changes only when a
model goes: what was used since then is valued just before the next one is chosen, and a request pays nothing for it.
"""

import asyncio
import logging
import time
import weakref
from collections.abc import Awaitable, Callable, Container, Mapping

from app.core.errors import InsufficientMemory, Unavailable
from app.serving.served import RETRY_S, ModelSource, ServedModel

log = logging.getLogger("aimass.serving")
# Longest wait for a model that could go to have no request.
_VICTIM_S = 10.0
_PAUSE_S = 0.01
_MIB = 1 << 20


class Residency:
    """The models in memory, those too that drain, against `budget` bytes (0: no budget)."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        # Weak: a model that was loaded and never served is gone when its loader lets go of it.
        self._values: weakref.WeakKeyDictionary[ServedModel, float] = weakref.WeakKeyDictionary()
        self._age = 0.0  # L

    def add(self, served: ServedModel) -> None:
        """The model is in memory."""
        self._values[served] = 0.0

    def remove(self, served: ServedModel) -> None:
        """The model's memory is free."""
        self._values.pop(served, None)

    def bytes(self) -> int:
        """Of all models."""
        return sum(served.bytes for served in self._values)

    async def make_room(
        self,
        source: ModelSource,
        needed: int,
        loaded: ServedModel | None,
        served: Mapping[str, ServedModel],
        evict: Callable[[ServedModel], Awaitable[None]],
    ) -> None:
        """Evict idle models of other endpoints until one of `needed` bytes fits, which may be `loaded` already.

        What it replaces counts as gone: it is, once its requests are answered. `served` is looked at anew after each
        wait, in which any of them may be replaced, removed or taken out.
        InsufficientMemory: it never fits. Unavailable: it does not while the others are in use.
        """
        if not self.budget:
            return
        if needed > self.budget:
            raise InsufficientMemory(
                f"{source} needs {needed / _MIB:.0f} MiB of the {self.budget // _MIB} MiB that models may use: raise "
                "AIMASS_SERVING_MEMORY_MB, or serve a smaller variant"
            )
        end = time.perf_counter() + _VICTIM_S
        missing = 0 if loaded else needed
        while True:
            replaced = served.get(source.endpoint)
            if self.bytes() + missing - (replaced.bytes if replaced else 0) <= self.budget:
                return
            others = {name: other for name, other in served.items() if name != source.endpoint}
            if victim := self.choose(others):
                log.info("endpoint=%s sleeps to make room for %s", victim, source)
                await evict(others[victim])
            elif not await self._unused({loaded, replaced}, end - time.perf_counter()):
                raise Unavailable(
                    f"there is no room for {source} while all other models are in use: raise AIMASS_SERVING_MEMORY_MB",
                    retry_after_s=RETRY_S,
                )

    def choose(self, among: Mapping[str, ServedModel]) -> str | None:
        """Which of them is to go: the endpoint of the least valuable that is idle. The caller evicts it."""
        for served in list(self._values):
            if served.touched:
                self._values[served] = self._age + served.load_s / max(1, served.bytes)
                served.touched = False
        known = self._values
        idle = [(known[served], name) for name, served in among.items() if served in known and served.idle]
        if not idle:
            return None
        self._age, chosen = min(idle)
        return chosen

    async def _unused(self, apart: Container[ServedModel | None], within_s: float) -> bool:
        """True once another model had no request for a moment, False if none has in time."""
        busy = [served for served in self._values if served not in apart]
        if not busy or within_s <= 0:
            return False
        waits = [asyncio.ensure_future(served.unused()) for served in busy]
        try:
            done, _ = await asyncio.wait(waits, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        await asyncio.sleep(_PAUSE_S)  # one that drains is unused before its memory is free
        return bool(done)
