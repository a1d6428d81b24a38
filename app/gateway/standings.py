"""What this process has made of the endpoints in the registry, and where all processes together stand."""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import replace

from app.core.resources import Applied, Endpoint
from app.gateway.processes import Processes, Standing, stand
from app.services.platform import Platform
from app.serving.host import Host

_ASK_S = (0.02, 0.05, 0.1, 0.2)  # between two looks at whether the other processes have followed


class Standings:
    """Keeps what was applied here until the registry has been told, and asks it for the others'."""

    def __init__(self, platform: Platform, host: Host, processes: Processes) -> None:
        self._platform = platform
        self._host = host
        self._processes = processes
        self.names: Collection[str] = frozenset()  # of the endpoints in the registry
        self._here: dict[str, Applied] = {}
        self._again: set[str] = set()  # could not be loaded for a reason that passes: the next sync tries
        self._unreported: set[str] = set()
        self._outages: set[str] = set()  # that were reported

    def expect(self, names: Collection[str]) -> None:
        """Until these are loaded they are unavailable rather than unknown; others are unknown."""
        self.names = names
        self._host.expect(set(names))

    def missing(self) -> list[str]:
        """Endpoints whose loading has not ended yet, whatever comes of it."""
        return sorted(set(self.names) - set(self._here))

    def gone(self) -> list[str]:
        """Endpoints that this process has applied and the registry has no more."""
        return sorted(set(self._here) - set(self.names))

    def behind(self, endpoint: Endpoint) -> bool:
        """True if it has to be loaded here, for the first time or once more."""
        here = self._here.get(endpoint.name)
        return here is None or here.generation != endpoint.generation or endpoint.name in self._again

    def failures(self) -> dict[str, str]:
        """Endpoints whose latest revision could not be loaded here, and why."""
        return {name: here.error for name, here in self._here.items() if here.error}

    def applied(self, name: str, applied: Applied | None) -> None:
        """It was changed here, or let go of (None), and the registry was told in the same transaction."""
        self._here.pop(name, None)
        if applied is not None:
            self._here[name] = applied
        self._again.discard(name)

    def note(self, endpoint: Endpoint, error: str | None = None, *, again: bool = False) -> None:
        """It was applied, or could not be; `report` tells the registry."""
        self._here[endpoint.name] = Applied(endpoint.generation, error)
        if error is not None:
            self._host.explain(endpoint.name, error)
        self._unreported.add(endpoint.name)
        (self._again.add if again else self._again.discard)(endpoint.name)

    def forget(self, name: str) -> None:
        """It was let go of, since the registry has it no more; `report` says so."""
        self.applied(name, None)
        self._unreported.add(name)

    def forgotten(self) -> None:
        """What this process has applied is to be reported anew: the registry has forgotten it."""
        self._unreported |= set(self._here)

    def note_outages(self) -> None:
        """What was taken out, or has come back, since the last time is to be reported."""
        outages = set(self._host.outages())
        self._unreported |= (outages ^ self._outages) & set(self._here)
        self._outages = outages

    async def report(self) -> None:
        """Tell the registry what it does not know yet."""
        names, self._unreported = self._unreported, set()
        if not names:
            return
        try:
            async with self._platform.database.write() as session:
                await self._processes.report(session, {name: self._now(name) for name in names})
        except BaseException:
            self._unreported |= names
            raise

    def _now(self, name: str) -> Applied | None:
        """What this process says of an endpoint: one that was taken out has failed, although it was loaded well."""
        here, outage = self._here.get(name), self._host.outages().get(name)
        return replace(here, error=outage) if here is not None and here.error is None and outage else here

    async def of(self, endpoints: Sequence[Endpoint]) -> list[Standing]:
        """What all gateway processes together have made of these endpoints."""
        if not endpoints:
            return []
        others = await self._processes.others([endpoint.name for endpoint in endpoints])
        return [
            stand(endpoint, [self._now(endpoint.name), *(reports.get(endpoint.name) for reports in others)])
            for endpoint in endpoints
        ]

    async def settled(self, endpoints: Sequence[Endpoint]) -> list[Standing]:
        """As `of`, once no process is loading them any more or `follow_s` have passed."""
        deadline, turn = self._deadline(), 0
        while True:
            standings = await self.of(endpoints)
            loading = any(standing.processes["loading"] for standing in standings)
            if not loading or not await _pause(turn, deadline):
                return standings
            turn += 1

    async def gone_elsewhere(self, endpoint: Endpoint) -> bool:
        """True once no other process has the deleted endpoint; False if one still has after `follow_s`."""
        deadline, turn = self._deadline(), 0
        while True:
            others = [reports.get(endpoint.name) for reports in await self._processes.others([endpoint.name])]
            if all(report is None or report.generation > endpoint.generation for report in others):
                return True
            if not await _pause(turn, deadline):
                return False
            turn += 1

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._platform.settings.gateway.follow_s


async def _pause(turn: int, deadline: float) -> bool:
    """Wait a little, longer with each turn; False, at once, after the deadline."""
    left_s = deadline - asyncio.get_running_loop().time()
    if left_s <= 0:
        return False
    await asyncio.sleep(min(left_s, _ASK_S[min(turn, len(_ASK_S) - 1)]))
    return True
