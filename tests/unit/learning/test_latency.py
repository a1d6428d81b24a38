"""Two models compared by turns, on a clock of the test's own."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from workers.evaluation import latency
from workers.evaluation.latency import Effort, by_turns, compare_latency

ROWS = {"x": np.ones((4, 1), np.float32)}
SHARES = {1: 0.001, 8: 0.004}  # seconds of a run by its rows, of a model of one byte


class Machine:
    """Its time passes while a model runs, the slower the more others run beside it."""

    def __init__(self, load: Callable[[float], float]) -> None:
        self.now, self.load = 0.0, load

    def session(self, model: bytes, _threads: int, _device: str) -> Any:
        def run(_: Any, inputs: Any) -> None:
            self.now += len(model) * SHARES[len(inputs["x"])] * self.load(self.now)

        return SimpleNamespace(get_outputs=list, run=run)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[float], float]], Machine]:
    def make(load: Callable[[float], float]) -> Machine:
        made = Machine(load)
        monkeypatch.setattr(latency, "open_session", made.session)
        monkeypatch.setattr(latency, "runner", lambda session: session.run)
        monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: made.now))
        return made

    return make


def test_a_moment_without_load_favours_nobody(machine: Callable[..., Machine]):
    """The same model twice, on a machine that others leave alone once, for as long as its last turn takes."""

    def load(now: float) -> float:
        return 1.0 if 2.0 < now < 2.5 else 2.0

    machine(load)
    first, second = compare_latency([b"a", b"b"], ROWS, 1, 8)
    assert second.items_per_s / first.items_per_s == pytest.approx(2.0)  # of the best of each
    machine(load)
    found = by_turns((b"a", b"b"), ROWS, 1, 8, Effort(25, 5, 60.0))
    assert (found.speed_up, found.quicker) == (pytest.approx(1.0), pytest.approx(1.0))
    assert found.latency.p50_ms == pytest.approx(2.0)  # the median of the rounds, no lucky one
    told = found.latency
    assert told.batch_p50_ms <= told.batch_p95_ms
    assert told.items_per_s == pytest.approx(told.batch / told.batch_p50_ms * 1e3)


def test_the_slow_runs_of_all_rounds_are_the_tail(machine: Callable[..., Machine]):
    """One batch a turn, of which some meet a load."""
    machine(lambda now: 120.0 if now % 7.3 < 2.2 else 30.0)
    told = by_turns((b"a", b"b"), ROWS, 1, 8, Effort(40, 5, 1e6)).latency
    assert told.batch_p50_ms == pytest.approx(120.0)
    assert told.batch_p95_ms > 2 * told.batch_p50_ms
    assert told.p95_ms > 2 * told.p50_ms


def test_what_is_faster_is_found_so_under_any_load(machine: Callable[..., Machine]):
    machine(lambda now: 1.0 + 3 * (now % 1.7 > 0.6))
    found = by_turns((b"full", b"a"), ROWS, 1, 8, Effort(25, 5, 60.0))
    assert (found.speed_up, found.quicker) == (pytest.approx(4.0, rel=0.02), pytest.approx(4.0, rel=0.02))


@pytest.mark.parametrize(
    ("effort", "rounds"), [(Effort(9, 3, 60.0), 9), (Effort(9, 3, 0.5), 3), (Effort(9, 3, 1.6), 8)]
)
def test_a_comparison_ends_when_its_time_is_up_after_some_rounds(
    machine: Callable[..., Machine], effort: Effort, rounds: int
):
    machine(lambda _: 1.0)
    assert by_turns((b"a", b"b"), ROWS, 1, 8, effort).rounds == rounds
