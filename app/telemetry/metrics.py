"""Every metric name of the platform, and how the hot path counts.

A prediction has about 25 µs for authentication, metrics and ids together, so its counters are plain Python numbers that
one event loop owns, bound to their labels when a model is loaded; they become Prometheus samples only when scraped.
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from app.telemetry.residency import LABELS, Labels, ResidencyCounts

PREDICT_REQUESTS = "aimass_predict_requests"
PREDICT_PHASE = "aimass_predict_phase_seconds"
PREDICT_BATCH_ROWS = "aimass_predict_batch_rows"
PREDICT_QUEUE_ROWS = "aimass_predict_queue_rows"
PREDICT_REFUSED = "aimass_predict_refused"
PREDICT_REJECTED = "aimass_predict_rejected"
PREDICT_CACHE = "aimass_predict_cache"
SERVING_MODEL_LOADED = "aimass_serving_model_loaded"
JOBS = "aimass_jobs"
GATEWAY_UP = "aimass_gateway_up"

CLIENT_GONE = 499  # what nginx calls it; a status that nobody receives
PHASES = ("receive", "parse", "queue", "batch", "compute", "encode")
PHASE_BOUNDS_S = (25e-6, 50e-6, 1e-4, 25e-5, 5e-4, 1e-3, 25e-4, 5e-3, 1e-2, 25e-3, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
RELEASED_KEPT = 8  # versions and variants of an endpoint that are not in memory, whose counters stay
ROW_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)


class Histogram:
    """Counts per bucket; `observe` is one bisect and two additions. Not for use from several threads at once."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts as Prometheus wants them: (upper bound, count of values at or below it)."""
        seen, rows = 0, []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            seen += count
            rows.append(("+Inf" if bound == float("inf") else str(float(bound)), float(seen)))
        return rows


class ModelMetrics:
    """The counters of one loaded model version behind one endpoint."""

    __slots__ = (
        "batch_rows",
        "labels",
        "last_at",
        "lookups",
        "phases",
        "queue_rows",
        "rejected",
        "runs",
        "statuses",
    )

    def __init__(self, endpoint: str, model: str, version: int, variant: str) -> None:
        self.labels: Labels = (endpoint, model, str(version), variant)
        self.statuses: Counter[int] = Counter()
        self.phases = tuple(Histogram(PHASE_BOUNDS_S) for _ in PHASES)
        self.batch_rows = Histogram(ROW_BOUNDS)
        self.queue_rows = 0
        self.rejected: Counter[str] = Counter()  # by reason
        self.runs: dict[int, list[float]] = {}  # rows of a run: [runs, seconds of stacking, seconds of computing]
        self.lookups = {"hit": [0, 0.0], "miss": [0, 0.0]}  # in the cache of answers: [count, seconds]
        self.last_at = 0.0  # when the last prediction was answered, seconds since the epoch

    def ran(self, rows: int, batch_s: float, compute_s: float) -> None:
        """Count one run of the model."""
        self.batch_rows.observe(rows)
        run = self.runs.get(rows)
        if run is None:
            run = self.runs[rows] = [0, 0.0, 0.0]
        run[0] += 1
        run[1] += batch_s
        run[2] += compute_s

    def looked_up(self, *, hit: bool, seconds: float) -> None:
        """Count one look into the cache of answers."""
        lookup = self.lookups["hit" if hit else "miss"]
        lookup[0] += 1
        lookup[1] += seconds

    def answered(
        self,
        receive_s: float,
        parse_s: float,
        queue_s: float,
        batch_s: float,
        compute_s: float,
        encode_s: float,
        *,
        cached: bool = False,
    ) -> None:
        """Count one successful prediction and the seconds that each phase took; a `cached` one took no run."""
        self.statuses[200] += 1
        self.last_at = time.time()
        receive, parse, queue, batch, compute, encode = self.phases
        receive.observe(receive_s)
        parse.observe(parse_s)
        queue.observe(queue_s)
        encode.observe(encode_s)
        if not cached:
            batch.observe(batch_s)
            compute.observe(compute_s)


class ServingMetrics(Collector):
    """Collects the metrics of models; `registry` is where they are exposed.

    The counters of a model stay when it leaves the memory, for the newest few of each endpoint, and go with the
    endpoint: a counter that begins anew with each swap or sleep hides what happened before.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._models: dict[Labels, ModelMetrics] = {}  # those not in memory in the order in which they left it
        self._holders: Counter[Labels] = Counter()
        self._endpoints: frozenset[str] | None = None  # all, while nobody has said which there are
        self.refused: Counter[str] = Counter()
        self.residency = ResidencyCounts()
        registry.register(self)

    def bind(self, endpoint: str, model: str, version: int, variant: str) -> ModelMetrics:
        """The counters of a newly loaded model version, in memory until `release`; loaded again, it counts on."""
        fresh = ModelMetrics(endpoint, model, version, variant)
        self._holders[fresh.labels] += 1
        return self._models.setdefault(fresh.labels, fresh)

    def release(self, metrics: ModelMetrics) -> None:
        """A holder has unloaded the model; with the last of them it is no longer in memory."""
        labels = metrics.labels
        self._holders[labels] -= 1
        if self._holders[labels] > 0:
            return
        del self._holders[labels]
        if (kept := self._models.pop(labels, None)) is None or not self._exists(labels[0]):
            return
        self._models[labels] = kept
        released = [other for other in self._models if other[0] == labels[0] and other not in self._holders]
        for other in released[:-RELEASED_KEPT]:
            del self._models[other]

    def keep_only(self, endpoints: frozenset[str]) -> None:
        """These endpoints exist: forget the counters of others, unless their models are still in memory."""
        self._endpoints = endpoints
        for labels in [labels for labels in self._models if labels not in self._holders]:
            if not self._exists(labels[0]):
                del self._models[labels]

    def _exists(self, endpoint: str) -> bool:
        return self._endpoints is None or endpoint in self._endpoints

    def collect(self) -> Iterator[Metric]:
        """The samples at this moment."""
        labels = LABELS
        requests = CounterMetricFamily(PREDICT_REQUESTS, "Predictions by HTTP status", labels=(*labels, "status"))
        phases = HistogramMetricFamily(PREDICT_PHASE, "Time of a prediction by phase", labels=(*labels, "phase"))
        batches = HistogramMetricFamily(PREDICT_BATCH_ROWS, "Rows of one run of the model", labels=labels)
        queued = GaugeMetricFamily(PREDICT_QUEUE_ROWS, "Rows that wait for the model", labels=labels)
        rejected = CounterMetricFamily(
            PREDICT_REJECTED, "Predictions that the queue refused or dropped", labels=(*labels, "reason")
        )
        cache = CounterMetricFamily(PREDICT_CACHE, "Looks into the cache of answers", labels=(*labels, "result"))
        loaded = GaugeMetricFamily(SERVING_MODEL_LOADED, "1 for each model in memory", labels=labels)
        for model in list(self._models.values()):
            for status, count in sorted(model.statuses.items()):
                requests.add_metric((*model.labels, str(status)), count)
            for phase, histogram in zip(PHASES, model.phases, strict=True):
                phases.add_metric((*model.labels, phase), histogram.buckets(), histogram.total)
            batches.add_metric(model.labels, model.batch_rows.buckets(), model.batch_rows.total)
            for result, lookup in model.lookups.items():
                cache.add_metric((*model.labels, result), lookup[0])
            for reason, count in sorted(model.rejected.items()):
                rejected.add_metric((*model.labels, reason), count)
            if model.labels in self._holders:
                queued.add_metric(model.labels, model.queue_rows)
                loaded.add_metric(model.labels, 1)
        refused = CounterMetricFamily(PREDICT_REFUSED, "Predictions refused before a model was found", labels=("code",))
        for code, count in sorted(self.refused.items()):
            refused.add_metric((code,), count)
        yield from (requests, phases, batches, queued, rejected, cache, loaded, refused)
        yield from self.residency.samples()
