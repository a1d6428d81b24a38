"""What the profile says of columns together, and how values are spread."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Ingest = Callable[..., Any]


def _csv(names: str, *columns: Any) -> bytes:
    rows = (",".join("" if v is None else str(v) for v in row) for row in zip(*columns, strict=True))
    return "\n".join([names, *rows]).encode()


def test_columns_that_rise_and_fall_together_are_pointed_out(ingest: Ingest):
    rng = np.random.default_rng(0)
    metres = rng.normal(5, 1, 200).round(4)
    feet = [None if i % 20 == 0 else round(-3.281 * m, 3) for i, m in enumerate(metres)]
    near = metres + rng.normal(0, 0.1, 200)  # a correlation of 0.995
    got = ingest(_csv("metres,feet,near,flag,other", metres, feet, near, [0, 1] * 100, rng.normal(size=200)))
    told = [w for w in got.result.warnings if "rise and fall together" in w]
    assert told == []  # with a twentieth missing
    got = ingest(_csv("metres,feet,near,big", metres, -3.281 * metres, near, 1e200 * metres))
    [told] = [w for w in got.result.warnings if "rise and fall together" in w]
    assert told.startswith("columns 'metres', 'feet', 'big' rise")


def test_equal_columns_are_told_of_once(ingest: Ingest):
    x = np.random.default_rng(0).normal(size=100)
    got = ingest(_csv("a,b,c", x, x, np.ones(100)))
    assert got.warned("'a', 'b' say the same")
    assert not got.warned("rise and fall")


def test_clean_tables_have_no_such_columns(shared: Path, ingest: Ingest):
    for name in ("tabular/california_housing.csv", "tabular/diamonds.csv.gz", "tabular/UCI_Credit_Card.csv.gz"):
        assert not ingest(shared / name).warned("rise and fall")


def test_lengths_and_dates_have_histograms(ingest: Ingest):
    texts = ["x" * (1 + i % 40) + f" {i}" for i in range(200)]
    days = [f"2024-01-{1 + i % 21:02}" for i in range(200)]
    got = ingest(_csv("text,day,y", texts, days, [0, 1] * 100))
    for name, key, low, high in (("text", "length_histogram", 3, 44), ("day", "histogram", 19723, 19743)):
        found = got.column(name)[key]
        assert (sum(found["counts"]), len(found["counts"])) == (200, 20)
        assert (found["edges"][0], found["edges"][-1]) == pytest.approx((low, high))
