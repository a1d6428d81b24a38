"""Sees that each model in memory still answers, takes out one that does not, and tries again what is out.

A model is proven on its golden rows, through the queue and the lanes that callers use, when it has not answered for a
while, when runs fail one after another, and after a run that had to be ended. Wrong or failing answers, or none, take
it out: who waits is answered, and the endpoint is loaded anew, with pauses that grow until it proves itself in service:
on its golden rows, or, where callers leave no silence for those, by answering them for as long a while.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from app.core.errors import AimassError, Unavailable
from app.serving.served import ServedModel
from app.serving.sleep import Sleeper
from app.settings import ServingSettings

log = logging.getLogger("aimass.serving")
_FAILURES = 3  # runs in a row
_TICKS = 4  # in the shorter of the two times
_LONGEST_TICK_S = 1.0
# Of a run's limit: a batch that hangs is run again request by request, and what hangs in it hangs twice.
_PATIENCE = 2.5


class Watchdog:
    """`models` and `sleepers` give what there is now; `take_out` lets go of a model, for a reason."""

    def __init__(
        self,
        settings: ServingSettings,
        models: Callable[[], Iterable[ServedModel]],
        sleepers: Callable[[], Iterable[Sleeper]],
        take_out: Callable[[ServedModel, str], None],
    ) -> None:
        self._prove_s = settings.prove_s
        self._patience_s = _PATIENCE * settings.run_limit_s
        self._tick_s = min(_LONGEST_TICK_S, settings.prove_s / _TICKS, settings.run_limit_s / _TICKS)
        self._models = models
        self._sleepers = sleepers
        self._take_out = take_out
        self._proofs: dict[str, asyncio.Task[None]] = {}  # by endpoint

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            while True:
                await asyncio.sleep(self._tick_s)
                for sleeper in self._sleepers():
                    if sleeper.due:
                        sleeper.wake()
                for served in self._models():
                    self._look_at(served)
        finally:
            for proof in self._proofs.values():
                proof.cancel()
            await asyncio.gather(*self._proofs.values(), return_exceptions=True)

    def _look_at(self, served: ServedModel) -> None:
        watch, endpoint = served.watch, served.source.endpoint
        if watch.ended_inline.is_set() and served.plan.inline:
            log.warning("endpoint=%s a run on the event loop was ended: it runs in a lane from now on", endpoint)
            served.leave_loop()
        if served.failures and not watch.failures and watch.good_at - served.since > self._prove_s:
            served.failures = 0
        silent_s = time.perf_counter() - watch.good_at
        if endpoint not in self._proofs and (silent_s > self._prove_s or watch.failures >= _FAILURES):
            proof = asyncio.create_task(self._prove(served), name=f"prove {endpoint}")
            self._proofs[endpoint] = proof
            proof.add_done_callback(lambda _: self._proofs.pop(endpoint, None))

    async def _prove(self, served: ServedModel) -> None:
        begun = time.perf_counter()
        try:
            async with asyncio.timeout(self._patience_s):
                await served.prove()
                served.failures = 0
                return
        except Unavailable:
            return  # unloaded meanwhile
        except TimeoutError:
            if served.watch.good_at >= begun:
                return  # a long queue, but it moves
            why = f"the golden rows had no answer within {self._patience_s:g} s"
        except AimassError as error:
            why = error.detail
        except Exception as error:  # noqa: BLE001 - whatever a broken session raises
            why = f"the golden rows do not run: {type(error).__name__}: {error}"
        self._take_out(served, why)
