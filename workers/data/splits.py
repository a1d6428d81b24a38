"""Rows to train on, to watch, and to judge by."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn.model_selection import train_test_split

from app.core.errors import InvalidData
from app.core.signature import Task
from app.specs.data import ROW_ID
from app.specs.jobs import SplitSpec
from workers.data.findings import listed
from workers.learning import Array

MIN_ROWS = 10
_PARTS = ("train", "validation", "test")
_GIVEN = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "dev": "validation", "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Split:
    """Positions (not row ids) in the cleaned data, int64, and how they came about."""

    train: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]
    method: str

    def sizes(self) -> dict[str, int]:
        """Rows of each part."""
        return {name: len(getattr(self, name)) for name in _PARTS}

    def lacks(self, classes: Sequence[str], y: Array) -> list[str]:
        """What has to be said of classes without a row in some part."""
        found = []
        for part, effect in (("train", "so they are never predicted"), ("test", "so the metrics say nothing of them")):
            there = set(np.unique(y[getattr(self, part)]).tolist())
            absent = [label for i, label in enumerate(classes) if i not in there]
            if absent:
                found.append(f"classes without a {part} row, {effect}: {listed(absent)}")
        return found

    def save(self, row_ids: Array, path: Path) -> None:
        """Write the row ids of each part as Parquet."""
        parts = [pl.DataFrame({ROW_ID: row_ids[getattr(self, name)], "part": name}) for name in _PARTS]
        pl.concat(parts).write_parquet(path)


def load_split(path: Path, row_ids: Array) -> Split:
    """Read a saved split back as positions in `row_ids`; rows that are gone are left out."""
    saved = pl.read_parquet(path)
    at = pl.DataFrame({ROW_ID: row_ids, "position": np.arange(len(row_ids))})
    joined = saved.join(at, on=ROW_ID, how="inner", maintain_order="left")
    parts = {name: joined.filter(pl.col("part") == name)["position"].to_numpy().astype(np.int64) for name in _PARTS}
    return Split(**parts, method="saved")


def split_rows(y: Array, task: Task, spec: SplitSpec, given: list[str | None] | None = None) -> Split:
    """Divide rows. `given` names each row's part where the data set brings its own division; `auto` follows it."""
    if len(y) < MIN_ROWS:
        raise InvalidData.at("dataset", msg=f"{len(y)} usable rows are too few; at least {MIN_ROWS} are needed")
    stratified = spec.method == "stratified" or (spec.method == "auto" and task == "classification")
    if spec.method == "stratified" and task == "regression":
        raise InvalidData.at("split", "method", msg="stratified needs classes; use random for regression")
    everything = np.arange(len(y))
    if spec.method == "auto" and given is not None:
        followed = _follow(given, y, spec, stratified=stratified)
        if followed is not None:
            return followed
    rest, test = _divide(everything, y, spec.test, spec.seed, stratified=stratified)
    train, validation = _divide(rest, y, spec.validation / (1 - spec.test), spec.seed, stratified=stratified)
    return _check(Split(train, validation, test, "stratified" if stratified else "random"), y, task)


def _follow(given: list[str | None], y: Array, spec: SplitSpec, *, stratified: bool) -> Split | None:
    """The data set's own division. Without a test part its validation part is the test, so that none is tuned on."""
    named = np.asarray([_GIVEN.get((name or "").lower(), "") for name in given])
    rows = {part: np.flatnonzero(named == part) for part in _PARTS}
    if (named == "").any() or not len(rows["train"]):
        return None
    if not len(rows["test"]):
        rows["test"], rows["validation"] = rows["validation"], rows["test"]
    if not len(rows["test"]):
        return None
    if not len(rows["validation"]):
        train = rows["train"]
        rows["train"], rows["validation"] = _divide(train, y, spec.validation, spec.seed, stratified=stratified)
    return _check(Split(rows["train"], rows["validation"], rows["test"], "given by the data set"), y, "")


def _divide(
    rows: npt.NDArray[np.int64], y: Array, share: float, seed: int, *, stratified: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Cut `share` of the rows off; both parts sorted."""
    held = max(1, round(len(rows) * share))
    strata = _strata(y[rows], min(held, len(rows) - held)) if stratified else None
    kept, cut = train_test_split(rows, test_size=held, random_state=seed, stratify=strata)
    return np.sort(kept), np.sort(cut)


def _strata(labels: Array, most: int) -> npt.NDArray[np.int64] | None:
    """Labels to divide in proportion, `most` at most; classes that are too rare for that are one stratum together."""
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    ranked = np.argsort(-counts, kind="stable")
    common = [k for k in ranked if counts[k] > 1]
    if len(common) < len(ranked) or len(common) > most:
        common = common[: most - 1]
    strata = np.full(len(counts), len(common))
    strata[common] = np.arange(len(common))
    rest = strata[codes] == len(common)
    if rest.sum() == 1 and common:  # a single row cannot be on both sides
        strata[strata == len(common)] = len(common) - 1
    return strata[codes] if common else None


def _check(split: Split, y: Array, task: str) -> Split:
    if task != "regression" and len(np.unique(y[split.train])) < 2:  # noqa: PLR2004 - one class
        raise InvalidData.at("split", msg="the training rows hold one class only; use another seed or more data")
    return split
