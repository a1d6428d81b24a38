"""One scrape for all gateway processes of a launcher, whichever of them answers it.

Each sample of a process carries the label `process`, its number. The process that is scraped asks the others at their
own sockets, so that Prometheus sees each counter grow as it does, and not another process's with every scrape.
"""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from app.telemetry.metrics import GATEWAY_UP

log = logging.getLogger("aimass.metrics")
OWN = {"of": "this"}  # the query of a process that asks another
_ASK_S = 2.0


class Labelled(Collector):
    """What `registry` collects, with the number of this process."""

    def __init__(self, registry: CollectorRegistry, number: int) -> None:
        self._registry = registry
        self._label = {"process": str(number)}

    def collect(self) -> Iterator[Metric]:
        """The samples at this moment."""
        for metric in self._registry.collect():
            metric.samples = [sample._replace(labels=sample.labels | self._label) for sample in metric.samples]
            yield metric


class Up(Collector):
    """Which processes could be asked."""

    def __init__(self, up: dict[int, bool]) -> None:
        self._up = up

    def collect(self) -> Iterator[Metric]:
        """1 or 0 for each."""
        family = GaugeMetricFamily(GATEWAY_UP, "1 for each gateway process that could be asked", labels=("process",))
        for number, up in sorted(self._up.items()):
            family.add_metric((str(number),), up)
        yield family


class Exposition:
    """The metrics of process `number` and of those at the other `sockets`, by number."""

    def __init__(self, registry: CollectorRegistry, number: int, sockets: dict[int, Path]) -> None:
        self._own = Labelled(registry, number)
        self._number = number
        self._sockets = sockets

    def own(self) -> bytes:
        """This process's metrics."""
        return generate_latest(self._own)

    async def all(self) -> bytes:
        """Every process's, and which of them are up."""
        texts = await asyncio.gather(*(self._ask(number, path) for number, path in self._sockets.items()))
        up = dict(zip(self._sockets, (text is not None for text in texts), strict=True)) | {self._number: True}
        merged = merge([self.own().decode(), *(text for text in texts if text is not None)])
        return merged.encode() + generate_latest(Up(up))

    async def _ask(self, number: int, path: Path) -> str | None:
        import httpx  # noqa: PLC0415 - it loads rich: 5 MiB, for one of several processes alone

        try:
            transport = httpx.AsyncHTTPTransport(uds=str(path))
            async with httpx.AsyncClient(transport=transport, timeout=_ASK_S) as client:
                answer = await client.get("http://gateway/metrics", params=OWN)
                return answer.raise_for_status().text
        except httpx.HTTPError as error:
            log.warning("gateway process %d did not give its metrics: %s", number, error or type(error).__name__)
            return None


def merge(texts: list[str]) -> str:
    """Expositions as one: Prometheus wants all samples of a metric under one head."""
    heads: dict[str, str] = {}
    samples: dict[str, list[str]] = {}
    for text in texts:
        for block in text.split("# HELP ")[1:]:
            help_, type_, *lines = block.splitlines(keepends=True)
            name = help_.split(" ", 1)[0]
            heads.setdefault(name, f"# HELP {help_}{type_}")
            samples.setdefault(name, []).extend(lines)
    return "".join(head + "".join(samples[name]) for name, head in heads.items())
