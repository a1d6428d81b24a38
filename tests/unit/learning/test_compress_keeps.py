"""What a search keeps: what holds the budget when it is measured a second time. Speeds and seconds are made up."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.specs.compression import CompressBudget
from workers.compression import confirming, search
from workers.compression.candidate import Candidate, Notebook
from workers.compression.front import front_of
from workers.compression.recipes import Recipe, key_of
from workers.compression.search import Search
from workers.compression.space import Space
from workers.context import Stopped

CHEAP, BYTES, BOTH = {"precision": "dynamic"}, {"storage": "bytes"}, {"precision": "dynamic", "storage": "bytes"}
TAUGHT = {"student": "small"}
NAMES = ("student", "precision", "storage")


def named(recipe: Recipe) -> str:
    """The last step's."""
    step = recipe[-1]
    return str(step.get("method", step["step"]))


@dataclass
class Host:
    """Stands for the measurements: speeds at first and again, by the name of a recipe's last step."""

    budget: CompressBudget
    first: dict[str, float]
    again: dict[str, float]
    sizes: dict[str, float] = field(default_factory=dict)  # times smaller
    seconds: float = 1.0  # of a first measurement
    confirm_s: float = 5.0
    now: float = 0.0
    tried: list[str] = field(default_factory=list)
    confirmed: list[str] = field(default_factory=list)
    killed_at: str = ""

    @property
    def maker(self) -> Any:
        def make(recipe: Recipe) -> bytes:
            return key_of(recipe).encode()

        return SimpleNamespace(
            make=make, forget=lambda: None, hopeless=lambda _: False,
            material=SimpleNamespace(seed=0, origin=None, job=None),
        )  # fmt: skip

    def candidate(self, recipe: Recipe, speed: float) -> Candidate:
        least = self.budget.min_speedup or 0.0
        stops = [f"under {least}"] if speed < least else []
        loss = {"metric": "accuracy", "measured": 0.0, "at_most": 0.0, "allowed": 0.01}
        smaller = self.sizes.get(named(recipe), 1.0)
        digest = hashlib.sha256(key_of(recipe).encode()).hexdigest()
        return Candidate(
            list(recipe), 1000, digest, loss, {}, smaller, speed, speed, max(least / speed - 1, 0.0), stops
        )

    def try_out(self, recipe: Recipe) -> Candidate:
        self.now += self.seconds
        self.tried.append(named(recipe))
        return self.candidate(recipe, self.first.get(named(recipe), 1.0))

    def measure(self, recipe: Recipe, _: bytes) -> Candidate:
        return self.candidate(recipe, self.first.get(named(recipe), 1.0))

    def confirm(self, one: Candidate) -> Candidate:
        if named(one.recipe) == self.killed_at:
            raise Stopped
        self.now += self.confirm_s
        self.confirmed.append(named(one.recipe))
        found = self.candidate(one.recipe, self.again[named(one.recipe)])
        return replace(found, first={"speed_up": one.speed_up})


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Host]:
    def make(budget: dict[str, Any], first: dict[str, float], again: dict[str, float], **more: Any) -> Host:
        made = Host(CompressBudget(**budget), first, again, **more)
        clock = SimpleNamespace(monotonic=lambda: made.now)
        monkeypatch.setattr(confirming, "time", clock)
        monkeypatch.setattr(search, "time", clock)
        return made

    return make


def space_of(*first: dict[str, str], choices: Sequence[str] = NAMES) -> Space:
    options = {
        "student": ("none", "small"), "precision": ("none", "dynamic", "8 bits, weights"), "storage": ("none", "bytes"),
    }  # fmt: skip
    whole = [{name: one.get(name, "none") for name in choices} for one in first]
    students = {"small": {"step": "student", "of": "networks", "size": "small"}}
    return Space({name: options[name] for name in choices}, whole, trees=False, students=students)


def search_of(host: Host, space: Space, folder: Path | None = None, limit_s: float = 600.0) -> Search:
    return Search(host, space, Notebook.open(folder, "host", "model"), limit_s)  # type: ignore[arg-type]


def kept(found: Search) -> list[str]:
    found.run()
    return [named(one.recipe) for one in found.confirming.settle()]


class TestAgain:
    """The second measurement decides."""

    FIRST = {"dynamic": 1.2, "byte_weights": 1.822, "student": 3.1}  # noqa: RUF012 - nothing changes it
    SPACE = space_of(CHEAP, BYTES, TAUGHT)

    @pytest.fixture(autouse=True)
    def only_the_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(search, "_REPEATS", 0)

    def test_what_was_fast_by_chance_alone_is_not_kept(self, host: Callable[..., Host]):
        there = host({}, self.FIRST, {"dynamic": 1.2, "byte_weights": 0.985, "student": 2.1})
        found = search_of(there, self.SPACE)
        assert kept(found) == ["student"]
        known = {named(one.recipe): one for one in found.confirming.known()}
        assert (known["student"].speed_up, known["student"].first) == (2.1, {"speed_up": 3.1})
        assert there.confirmed == ["student"]  # the others are not beside it, at first or again

    def test_of_the_others_the_next_best_are_measured_again_until_one_holds(self, host: Callable[..., Host]):
        there = host({"min_speedup": 1.1}, self.FIRST, {"dynamic": 1.15, "byte_weights": 0.985, "student": 1.05})
        found = search_of(there, self.SPACE)
        assert kept(found) == ["dynamic"]
        assert there.confirmed == ["byte_weights", "dynamic"]  # what needs no training does
        [out] = [one for one in found.confirming.known() if named(one.recipe) == "byte_weights"]
        assert (out.accepted, out.stops, out.first) == (False, ["under 1.1"], {"speed_up": 1.822})

    def test_nothing_is_kept_where_nothing_holds_again(self, host: Callable[..., Host]):
        there = host({"min_speedup": 1.1}, self.FIRST, dict.fromkeys(self.FIRST, 1.05))
        assert kept(search_of(there, self.SPACE)) == []
        assert there.confirmed == ["byte_weights", "dynamic", "student"]

    def test_what_is_not_better_again_says_so(self, host: Callable[..., Host]):
        there = host({}, {"byte_weights": 1.8}, {"byte_weights": 1.01})
        found = search_of(there, space_of(BYTES))
        assert kept(found) == []
        [out] = found.confirming.known()
        assert str(out.reason).startswith("measured again, it is not better: 1.00 times smaller, 1.01 times the rows")

    def test_the_time_for_it_is_kept_back_from_the_search(self, host: Callable[..., Host]):
        there = host({}, self.FIRST, self.FIRST, seconds=30.0, confirm_s=20.0)
        found = search_of(there, space_of(BYTES, CHEAP, TAUGHT), limit_s=80.0)
        assert kept(found) == ["byte_weights"]
        assert there.tried == ["byte_weights", "dynamic"]  # at 60 s none is begun, since 20 are for the first
        assert there.now == 80.0

    def test_what_there_is_no_time_for_is_not_kept(self, host: Callable[..., Host]):
        """Three for the front, of which a quarter of the time is enough for two."""
        sizes = {"dynamic": 9.0, "byte_weights": 4.0, "student": 1.0}
        there = host({}, self.FIRST, self.FIRST, sizes=sizes, seconds=20.0, confirm_s=11.0)
        found = search_of(there, self.SPACE, limit_s=80.0)
        assert kept(found) == ["student", "byte_weights"]
        late = [one for one in found.confirming.known() if not one.accepted]
        assert [(named(one.recipe), one.stops) for one in late] == [
            ("dynamic", ["it was not measured a second time before the time was up"])
        ]

    def test_one_is_measured_again_however_late_it_is(self, host: Callable[..., Host]):
        there = host({}, self.FIRST, {**self.FIRST, "student": 1.0}, seconds=500.0, confirm_s=40.0)
        assert kept(search_of(there, space_of(TAUGHT, BYTES), limit_s=100.0)) == []
        assert there.confirmed == ["student"]

    def test_a_later_attempt_searches_no_more_and_measures_nothing_a_third_time(
        self, host: Callable[..., Host], tmp_path: Path
    ):
        sizes = {"dynamic": 9.0, "byte_weights": 4.0, "student": 1.0}
        there = host({}, self.FIRST, {**self.FIRST, "student": 3.0}, sizes=sizes, killed_at="dynamic")
        with pytest.raises(Stopped):
            kept(search_of(there, self.SPACE, tmp_path))
        assert there.confirmed == ["student", "byte_weights"]
        there.killed_at, before = "", list(there.tried)
        again = search_of(there, space_of(CHEAP, BYTES, TAUGHT, BOTH), tmp_path)
        assert kept(again) == ["student", "byte_weights", "dynamic"]
        assert there.tried == before
        assert there.confirmed == ["student", "byte_weights", "dynamic"]
        assert [one.speed_up for one in again.confirming.settle()] == [3.0, 1.822, 1.2]

    def test_a_later_attempt_goes_on_however_much_it_knows(
        self, host: Callable[..., Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        """It draws what the first has drawn before anything new, and that is no end."""
        monkeypatch.setattr(search, "_REPEATS", 10)
        ranks, precisions = ("none", "0.98", "0.9", "0.75"), ("none", "dynamic", "8 bits, weights", "4 bits, weights")
        space = Space({"precision": precisions, "storage": ("none", "bytes", "half"), "rank": ranks}, [], trees=False)
        there = host({}, {}, {})
        first = len(search_of(there, space, tmp_path, limit_s=12.0).run())
        assert first == 12
        (book := Notebook.open(tmp_path, "host", "model")).searched = False
        book.save(book.spent_s)
        assert len(search_of(there, space, tmp_path, limit_s=20.0).run()) == 20

    def test_what_is_known_of_layers_is_kept_when_the_job_is_to_stop(self, host: Callable[..., Host], tmp_path: Path):
        found = search_of(host({}, {}, {}), self.SPACE, tmp_path)
        found.notebook.changes_of([{"step": "quantize"}])["layer"] = 0.5
        kept: list[str] = []
        job = SimpleNamespace(should_stop=lambda: True, checkpointed=lambda: kept.append("a checkpoint"))
        found.job = job  # type: ignore[assignment] # as much of it as is asked
        with pytest.raises(Stopped):
            found._between()
        assert kept == ["a checkpoint"]
        assert list(Notebook.open(tmp_path, "host", "model").changes.values()) == [{"layer": 0.5}]

    def test_what_comes_nearest_is_measured_again_if_it_holds_after_all(self, host: Callable[..., Host]):
        there = host({"min_speedup": 2.0}, {"dynamic": 1.5}, {"dynamic": 2.1})
        found = search_of(there, space_of(CHEAP))
        assert kept(found) == []
        [missed] = [one for one in found.confirming.known() if named(one.recipe) == "dynamic" and len(one.recipe) == 1]
        there.first["dynamic"] = 2.2
        another = replace(missed, sha256="of the file that the attempt before has made")
        assert found.confirming.settle_one(another).first == {"speed_up": 2.2}
        assert there.confirmed == ["dynamic"]


class TestTraining:
    """Which takes longest, and is done where a target needs it or there is none."""

    SPACE = space_of(TAUGHT, {**TAUGHT, **CHEAP}, CHEAP, BYTES)

    def test_a_target_that_is_reached_without_it_needs_none(self, host: Callable[..., Host]):
        there = host({"min_speedup": 2.0}, {"dynamic": 2.5}, {"dynamic": 2.4})
        found = search_of(there, self.SPACE)
        assert kept(found) == ["dynamic"]
        assert not any(one.trained for one in found.notebook.all())
        assert len(there.tried) == 5  # everything else is tried, also what is only proposed

    @pytest.mark.parametrize("again", [1.9, 2.5])
    def test_a_target_that_is_reached_by_chance_alone_needs_it(self, host: Callable[..., Host], again: float):
        there = host({"min_speedup": 2.0}, {"dynamic": 2.5, "student": 4.0}, {"dynamic": again, "student": 4.0})
        found = search_of(there, self.SPACE)
        found.run()
        assert any(one.trained for one in found.notebook.all()) == (again < 2.0)

    def test_a_target_that_is_missed_without_it_is_looked_for_with_it(self, host: Callable[..., Host]):
        there = host({"min_speedup": 2.0}, {"dynamic": 1.5, "student": 4.0}, {"student": 4.0})
        assert kept(search_of(there, self.SPACE)) == ["student"]
        assert there.tried[:3] == ["dynamic", "byte_weights", "student"]  # the cheap ones first

    def test_without_a_target_it_is_done_in_its_place(self, host: Callable[..., Host]):
        there = host({"time_limit_s": 600}, {"dynamic": 2.5, "student": 4.0}, {"dynamic": 2.4, "student": 4.0})
        assert kept(search_of(there, self.SPACE)) == ["student"]
        assert there.tried[:3] == ["student", "dynamic", "dynamic"]


def one(name: str, speed_up: float, smaller: float = 2.0, drop: float = 0.0, steps: int = 1) -> Candidate:
    loss = {"metric": "accuracy", "measured": drop, "at_most": drop, "allowed": 0.01}
    return Candidate(
        [{"step": name}] * steps, round(1000 / smaller), loss=loss, smaller=smaller, speed_up=speed_up, quicker=speed_up
    )


def test_losses_of_different_metrics_are_compared_by_what_is_allowed():
    area = {"metric": "roc_auc", "measured": 0.0019, "at_most": 0.0019, "allowed": 0.002}
    accuracy = {"metric": "accuracy", "measured": 0.004, "at_most": 0.004, "allowed": 0.01}
    found = [replace(one("a", 2.0), loss=accuracy), replace(one("b", 2.0, 3.0), loss=area)]
    assert names(found) == ["b", "a"]


def names(candidates: Sequence[Candidate]) -> list[str]:
    return [named(found.recipe) for found in front_of(candidates, "speed")]


@pytest.mark.parametrize(
    ("candidates", "front"),
    [
        ([one("a", 2.0, steps=2), one("b", 1.95)], ["b"]),  # alike: the one with fewer steps
        ([one("student", 2.0), one("fuse", 1.95, steps=2)], ["fuse"]),  # or the one that needs no training
        ([one("a", 2.0), one("b", 2.2)], ["b"]),
        ([one("a", 2.0, drop=0.005), one("b", 1.95)], ["b"]),  # hardly faster, and loses more
        ([one("a", 2.0, 3.0), one("b", 1.95, 3.3)], ["b"]),
        ([one("a", 3.0), one("b", 2.0, 3.0)], ["a", "b"]),
        ([one("a", 2.0, drop=0.005), one("b", 1.8)], ["a", "b"]),
        # b is as good as a, and c as b, but a is really faster than c, which is really smaller
        ([one("a", 2.16, 1.0), one("b", 2.08, 1.06), one("c", 2.0, 1.12)], ["a", "c"]),
    ],
)
def test_a_front_has_no_two_that_are_alike(candidates: list[Candidate], front: list[str]):
    assert names(candidates) == front
    assert names(candidates[::-1]) == front
