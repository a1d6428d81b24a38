"""Counts of the models' comings and goings in one process, as Prometheus samples."""

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

MODEL_BYTES = "aimass_serving_model_bytes"
EVICTIONS = "aimass_serving_evictions"
WAKES = "aimass_serving_loads_on_demand"
TAKEN_OUT = "aimass_serving_taken_out"

LABELS = ("endpoint", "model", "version", "variant")  # of all that is counted of a model behind an endpoint
Labels = tuple[str, str, str, str]


class ResidencyCounts:
    """Plain numbers that the event loop owns."""

    def __init__(self) -> None:
        self._bytes: Counter[Labels] = Counter()
        self.evictions: Counter[str] = Counter()  # by endpoint
        self.wakes: Counter[tuple[str, str]] = Counter()  # by endpoint and `loaded` or `failed`
        self.taken_out: Counter[str] = Counter()  # by endpoint

    def resize(self, labels: Labels, change: int) -> None:
        """A model of so many bytes came, or went: two copies are in memory while one takes over from the other."""
        self._bytes[labels] += change
        if self._bytes[labels] <= 0:
            del self._bytes[labels]

    def samples(self) -> Iterator[Metric]:
        """The samples at this moment."""
        sizes = GaugeMetricFamily(MODEL_BYTES, "Measured memory of a model", labels=LABELS)
        for labels, size in sorted(self._bytes.items()):
            sizes.add_metric(labels, size)
        evictions = CounterMetricFamily(EVICTIONS, "Models put to sleep for room", labels=("endpoint",))
        for endpoint, count in sorted(self.evictions.items()):
            evictions.add_metric((endpoint,), count)
        wakes = CounterMetricFamily(WAKES, "Sleeping models loaded for a request", labels=("endpoint", "outcome"))
        for key, count in sorted(self.wakes.items()):
            wakes.add_metric(key, count)
        out = CounterMetricFamily(TAKEN_OUT, "Models taken out as they failed or hung", labels=("endpoint",))
        for endpoint, count in sorted(self.taken_out.items()):
            out.add_metric((endpoint,), count)
        yield from (sizes, evictions, wakes, out)
