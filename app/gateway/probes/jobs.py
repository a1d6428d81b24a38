"""Jobs by kind and state as Prometheus gauges, counted in the registry when scraped."""

import contextlib
from collections.abc import Iterator

from prometheus_client import generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from app.core.errors import Unavailable
from app.registry.jobs import JobReader
from app.services.platform import Platform
from app.telemetry.metrics import JOBS


class JobMetrics(Collector):
    """The same in every gateway process; without the registry the last counts stand."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._counts: dict[tuple[str, str], int] = {}

    async def exposition(self) -> bytes:
        """Count anew."""
        with contextlib.suppress(Unavailable):
            async with self._platform.database.read() as session:
                self._counts = await JobReader(session).counts()
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        """The samples of the last count."""
        family = GaugeMetricFamily(JOBS, "Jobs by kind and state", labels=("kind", "state"))
        for (kind, state), count in sorted(self._counts.items()):
            family.add_metric((kind, state), count)
        yield family
