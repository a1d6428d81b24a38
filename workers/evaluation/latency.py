"""How fast a model is on this host, on its processor or a GPU of it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from app.core.host import host_name
from app.serving.bfloat16 import runner
from workers.evaluation.device import CPU
from workers.export.runtime import open_session
from workers.learning import Inputs, rows_of, take

_BATCH_OF_ROWS, _BATCH_OF_PICTURES = 256, 32
_BUDGET_S = 0.15  # of each of the two measurements
_WARM_RUNS, _FEW_RUNS, _MIN_RUNS, _MAX_RUNS = 5, 3, 20, 1000
_PATIENCE = 5  # times the budget for _MIN_RUNS of a slow model; then _FEW_RUNS do
_TURNS = 3  # the budget's parts where two models take turns: the shorter they are, the more alike is the load on both

_TIMES = ("p50_ms", "p95_ms", "batch_p50_ms", "batch_p95_ms")
_Run = Callable[[int], Any]  # of an index


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds for one row and for `batch` rows, rows a second of those, where it ran, the session's threads."""

    p50_ms: float
    p95_ms: float
    items_per_s: float
    batch_p50_ms: float
    batch_p95_ms: float
    batch: int
    host: str
    threads: int

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Effort:
    """How long two models are compared: `rounds`, or as many as begin within `most_s`, but `least` at least."""

    rounds: int
    least: int
    most_s: float


@dataclass(frozen=True, slots=True)
class Beside:
    """A model that was timed by turns with another: how many times as fast it is, in batches and for one row."""

    latency: Latency
    speed_up: float
    quicker: float
    rounds: int = 1  # that it was timed in


def usual_batch(inputs: Inputs) -> int:
    """Rows of the batch that throughput is measured with."""
    pictures = any(array.ndim > 2 for array in inputs.values())  # noqa: PLR2004 - more than rows of values
    return _BATCH_OF_PICTURES if pictures else _BATCH_OF_ROWS


def measure_latency(model: bytes, inputs: Inputs, threads: int, batch: int, device: str = CPU) -> Latency:
    """Time a warm session in-process, without a batcher or a network.

    Args:
        model: serialised ONNX.
        inputs: real rows; repeated when there are fewer than a batch.
        threads: of the session.
        batch: rows of the second measurement.
        device: where it runs.
    """
    session = open_session(model, threads, device)
    return time_session(session, *_rows(inputs, batch), batch, threads, _BUDGET_S, device)


def _rows(inputs: Inputs, batch: int) -> tuple[list[Inputs], Inputs]:
    """Single ones, and a batch."""
    ones: list[Inputs] = [take(inputs, slice(i, i + 1)) for i in range(min(32, rows_of(inputs)))]
    return ones, take(inputs, np.arange(batch) % rows_of(inputs))


def time_session(
    session: Any,  # noqa: ANN401 - of ONNX Runtime, which has no types
    ones: Sequence[Inputs],
    many: Inputs,
    batch: int,
    threads: int,
    budget_s: float,
    device: str = CPU,
) -> Latency:
    """Time single rows in turn, and a batch of `batch` rows; `device` is where the session runs."""
    names = [output.name for output in session.get_outputs()]
    run = runner(session)
    single = _times(lambda i: run(names, ones[i % len(ones)]), budget_s)
    bulk = _times(lambda _: run(names, many), budget_s)
    return _latency(single, bulk, batch, threads, device)


def _latency(single: Sequence[float], bulk: Sequence[float], batch: int, threads: int, device: str) -> Latency:
    """From the seconds of runs; the median resists other processes on a shared host."""
    p50, p95 = np.percentile(single, [50, 95]) * 1e3
    batch_p50, batch_p95 = np.percentile(bulk, [50, 95]) * 1e3
    rate = float(batch / np.median(bulk))
    times = float(p50), float(p95), rate, float(batch_p50), float(batch_p95)
    return Latency(*times, batch, host_name(device), threads)


def compare_latency(
    models: Sequence[bytes], inputs: Inputs, threads: int, batch: int, rounds: int = 3, device: str = CPU
) -> list[Latency]:
    """Measure models in turns and keep each one's best round, so that a passing load does not favour one of them."""
    taken = [[measure_latency(model, inputs, threads, batch, device) for model in models] for _ in range(rounds)]
    best = []
    for own in zip(*taken, strict=True):
        least = {name: min(getattr(x, name) for x in own) for name in _TIMES}
        best.append(replace(own[0], **least, items_per_s=max(x.items_per_s for x in own)))
    return best


def by_turns(
    models: tuple[bytes, bytes], inputs: Inputs, threads: int, batch: int, effort: Effort, device: str = CPU
) -> Beside:
    """How the second model compares with the first: the median of what single rounds say, in which both have a turn.

    Its own times are those of all its runs.

    A load that comes and goes slows both turns of most rounds alike, and the median passes over the others. Were the
    rounds of each model put together first, as its best one, the model that had luck once would win.
    """
    ones, many = _rows(inputs, batch)
    first, second = (_Turns.of(open_session(model, threads, device), ones, many) for model in models)
    singles, bulks = [], []  # type: list[float], list[float]
    speed_up, quicker = [], []  # type: list[float], list[float]
    begun = time.perf_counter()
    while len(quicker) < effort.rounds and (len(quicker) < effort.least or time.perf_counter() - begun < effort.most_s):
        before, single = first.single(), second.single()
        before_bulk, bulk = first.bulk(), second.bulk()
        quicker.append(np.median(before) / np.median(single))
        speed_up.append(np.median(before_bulk) / np.median(bulk))
        singles += single
        bulks += bulk
    found = _latency(singles, bulks, batch, threads, device)
    return Beside(found, float(np.median(speed_up)), float(np.median(quicker)), len(quicker))


@dataclass(frozen=True, slots=True)
class _Turns:
    """A warm session that is timed for a moment whenever it is its turn.

    The first run of a turn finds the other model in the processor's caches, and counts if there is no second.
    """

    one: _Run
    batch: _Run
    budget_s: float

    @classmethod
    def of(cls, session: Any, ones: Sequence[Inputs], many: Inputs) -> "_Turns":  # noqa: ANN401 - it has no types
        names, run = [output.name for output in session.get_outputs()], runner(session)
        found = cls(lambda i: run(names, ones[i % len(ones)]), lambda _: run(names, many), _BUDGET_S / _TURNS)
        for each in (found.one, found.batch):
            _warm(each, found.budget_s)
        return found

    def single(self) -> list[float]:
        taken = _timed(self.one, self.budget_s, _MIN_RUNS + 1, _FEW_RUNS)
        return taken[1:] or taken

    def bulk(self) -> list[float]:
        taken = _timed(self.batch, self.budget_s, 1, 1)
        return taken[1:] or taken


def _times(run: _Run, budget_s: float) -> list[float]:
    _warm(run, budget_s)
    return _timed(run, budget_s, _MIN_RUNS, _FEW_RUNS)


def _warm(run: _Run, budget_s: float) -> None:
    begun = time.perf_counter()
    for i in range(_WARM_RUNS):
        run(i)
        if time.perf_counter() - begun > budget_s:
            break


def _timed(run: _Run, budget_s: float, least: int, few: int) -> list[float]:
    """Seconds of the runs that the budget has time for, at least `least`, or `few` of those that take long."""
    taken: list[float] = []
    begun = time.perf_counter()

    def enough() -> bool:
        spent_s, count = time.perf_counter() - begun, len(taken)
        return count >= least if spent_s < budget_s * _PATIENCE else count >= few

    while len(taken) < _MAX_RUNS and (time.perf_counter() - begun < budget_s or not enough()):
        start = time.perf_counter()
        run(len(taken))
        taken.append(time.perf_counter() - start)
    return taken
