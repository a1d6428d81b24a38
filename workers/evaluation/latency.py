"""How fast a model is on this host."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from app.core.host import host_name
from app.serving.bfloat16 import runner
from workers.export.runtime import open_session
from workers.learning import Inputs, rows_of, take

_BATCH_OF_ROWS, _BATCH_OF_PICTURES = 256, 32
_BUDGET_S = 0.15  # of each of the two measurements
_WARM_RUNS, _FEW_RUNS, _MIN_RUNS, _MAX_RUNS = 5, 3, 20, 1000
_PATIENCE = 5  # times the budget for _MIN_RUNS of a slow model; then _FEW_RUNS do


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds for one row, rows a second at `batch` rows, the processor, and the session's threads."""

    p50_ms: float
    p95_ms: float
    items_per_s: float
    batch: int
    host: str
    threads: int

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def usual_batch(inputs: Inputs) -> int:
    """Rows of the batch that throughput is measured with."""
    pictures = any(array.ndim > 2 for array in inputs.values())  # noqa: PLR2004 - more than rows of values
    return _BATCH_OF_PICTURES if pictures else _BATCH_OF_ROWS


def measure_latency(model: bytes, inputs: Inputs, threads: int, batch: int) -> Latency:
    """Time a warm session in-process, without a batcher or a network.

    Args:
        model: serialised ONNX.
        inputs: real rows; repeated when there are fewer than a batch.
        threads: of the session.
        batch: rows of the second measurement.
    """
    many = take(inputs, np.arange(batch) % rows_of(inputs))
    ones = [take(inputs, slice(i, i + 1)) for i in range(min(32, rows_of(inputs)))]
    return time_session(open_session(model, threads), ones, many, batch, threads, _BUDGET_S)


def time_session(
    session: Any,  # noqa: ANN401 - of ONNX Runtime, which has no types
    ones: Sequence[Inputs],
    many: Inputs,
    batch: int,
    threads: int,
    budget_s: float,
) -> Latency:
    """Time single rows in turn, and a batch of `batch` rows."""
    names = [output.name for output in session.get_outputs()]
    run = runner(session)
    single = _times(lambda i: run(names, ones[i % len(ones)]), budget_s)
    bulk = _times(lambda _: run(names, many), budget_s)
    p50, p95 = np.percentile(single, [50, 95]) * 1e3
    # The median resists other processes on a shared host.
    return Latency(float(p50), float(p95), float(batch / np.median(bulk)), batch, host_name(), threads)


def compare_latency(
    models: Sequence[bytes], inputs: Inputs, threads: int, batch: int, rounds: int = 3
) -> list[Latency]:
    """Measure models in turns and keep each one's best round, so that a passing load does not favour one of them."""
    taken = [[measure_latency(model, inputs, threads, batch) for model in models] for _ in range(rounds)]
    best = []
    for own in zip(*taken, strict=True):
        p50, p95 = min(x.p50_ms for x in own), min(x.p95_ms for x in own)
        best.append(replace(own[0], p50_ms=p50, p95_ms=p95, items_per_s=max(x.items_per_s for x in own)))
    return best


def _times(run: Any, budget_s: float) -> list[float]:  # noqa: ANN401 - any callable of an index
    begun = time.perf_counter()
    for i in range(_WARM_RUNS):
        run(i)
        if time.perf_counter() - begun > budget_s:
            break
    taken: list[float] = []
    begun = time.perf_counter()

    def enough() -> bool:
        spent_s, count = time.perf_counter() - begun, len(taken)
        return count >= _MIN_RUNS if spent_s < budget_s * _PATIENCE else count >= _FEW_RUNS

    while len(taken) < _MAX_RUNS and (time.perf_counter() - begun < budget_s or not enough()):
        start = time.perf_counter()
        run(len(taken))
        taken.append(time.perf_counter() - start)
    return taken
