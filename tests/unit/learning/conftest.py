"""Job folders for learning, laid out as the agent lays them out."""

import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image
from sklearn import datasets

from workers.context import Events, JobContext

KINDS = {pl.Int64: "integer", pl.Float64: "number", pl.Boolean: "boolean", pl.String: "category"}


@pytest.fixture(autouse=True)
def without_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of a second for each of over a hundred trainings; `test_closer.py` looks at plots."""
    if request.path.name != "test_closer.py":
        monkeypatch.setattr("workers.jobs.closer._draw", lambda _: {})


@pytest.fixture(autouse=True)
def short_measurements(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in tests of what recipes make is about how fast it is."""
    if request.path.name.startswith("test_compress_real_"):
        monkeypatch.setattr("workers.evaluation.latency._BUDGET_S", 0.003)


class Job(JobContext):
    """A job whose events can be read back."""

    @property
    def seen(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "events.jsonl").read_text().splitlines()]


@pytest.fixture
def make_job(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """`make_job(frame, kind="tabular", name="job", **spec)`: a job folder with the data set in it."""
    opened = []

    def make(frame: pl.DataFrame, *, data: str = "tabular", name: str = "job", **spec: Any) -> Job:
        folder = tmp_path / name
        target = folder / "input" / "dataset"
        target.mkdir(parents=True, exist_ok=True)
        frame = frame.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias("__row_id"))
        frame.write_parquet(target / "data.parquet")
        columns = [
            {"name": c, "type": KINDS.get(frame[c].dtype, "text"), "missing": frame[c].null_count()}
            for c in frame.columns
            if c != "__row_id" and data == "tabular"
        ]
        profile = {"kind": data, "rows": len(frame), "columns": columns}
        (target / "profile.json").write_text(json.dumps(profile))
        events = os.open(folder / "events.jsonl", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        opened.append(events)
        full = {"kind": "train", "model": "m", "dataset": "d@1", "task": "classification", "target": "target"} | spec
        return Job("job-1", full["kind"], 1, full, folder, Events(events))

    yield make
    for descriptor in opened:
        os.close(descriptor)


def _bunch(bunch: dict[str, Any], labels: Sequence[str] | None = None) -> pl.DataFrame:
    names = bunch["feature_names"]
    columns = {str(name).replace(" ", "_"): bunch["data"][:, i] for i, name in enumerate(names)}
    target = bunch["target"] if labels is None else [str(labels[i]) for i in bunch["target"]]
    return pl.DataFrame({**columns, "target": target})


@pytest.fixture(scope="session")
def cancer() -> pl.DataFrame:
    """569 rows, 30 numbers, two classes."""
    bunch = datasets.load_breast_cancer()
    return _bunch(bunch, bunch["target_names"])


@pytest.fixture(scope="session")
def wine() -> pl.DataFrame:
    """178 rows, 13 numbers, three classes."""
    bunch = datasets.load_wine()
    return _bunch(bunch, bunch["target_names"])


@pytest.fixture(scope="session")
def diabetes() -> pl.DataFrame:
    """442 rows, 10 numbers, a number to predict."""
    return _bunch(datasets.load_diabetes())


@pytest.fixture(scope="session")
def mixed() -> pl.DataFrame:
    """1,200 rows with gaps: two numbers, a boolean, two categories; the answer depends on `city` and `age`."""
    rng = np.random.default_rng(7)
    n = 1200
    city = rng.choice(["Berlin", "Oslo", "Rome", "Wien"], n)
    age = rng.uniform(18, 80, n)
    member = rng.random(n) < 0.5
    plan = rng.choice(["basic", "plus"], n)
    score = (city == "Oslo") * 2.0 + (city == "Rome") * -2.0 + (age - 45) / 10 + member * 0.5
    yes = rng.random(n) < 1 / (1 + np.exp(-score))
    return pl.DataFrame(
        {
            "city": [None if rng.random() < 0.05 else c for c in city],
            "age": [None if rng.random() < 0.1 else a for a in age],
            "visits": rng.integers(0, 30, n),
            "member": member,
            "plan": plan,
            "target": ["yes" if y else "no" for y in yes],
            "amount": 1000 + 100 * score + rng.normal(0, 20, n),
        }
    )


@pytest.fixture(scope="session")
def digits() -> pl.DataFrame:
    """1,797 grey pictures of 8 x 8 pixels, as an ingested archive of class folders."""
    bunch = datasets.load_digits()
    rows = []
    for index, (pixels, label) in enumerate(zip(bunch["images"], bunch["target"], strict=True)):
        buffer = io.BytesIO()
        Image.fromarray((pixels * 15.9).astype(np.uint8)).save(buffer, "PNG")
        rows.append((buffer.getvalue(), str(label), f"{label}/{index}.png", 8, 8))
    return pl.DataFrame(rows, schema=["image", "label", "path", "width", "height"], orient="row")
