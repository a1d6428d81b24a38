"""Rows to train on, to watch, and to judge by."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from app.core.errors import InvalidData, InvalidInput
from app.core.signature import Task
from app.specs.data import ROW_ID
from app.specs.splits import SplitSpec
from workers.data.division import Divider, Grouped, Ordered, Rows, Shuffled
from workers.data.findings import listed
from workers.data.values import as_text
from workers.learning import Array

MIN_ROWS = 10
PARTS = ("train", "validation", "test")
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
        return {name: len(getattr(self, name)) for name in PARTS}

    def lacks(self, classes: Sequence[str], y: Array) -> list[str]:
        """What has to be said of classes without a row in some part."""
        found = []
        for part, effect in (("train", "so they are never predicted"), ("test", "so the metrics say nothing of them")):
            rows = y[getattr(self, part)]
            there = set((np.unique(rows) if rows.ndim == 1 else np.flatnonzero(rows.any(axis=0))).tolist())
            absent = [label for i, label in enumerate(classes) if i not in there]
            if absent:
                found.append(f"classes without a {part} row, {effect}: {listed(absent)}")
        return found

    def save(self, row_ids: Array, path: Path, folds: Sequence["Split"] = ()) -> None:
        """Write the row ids of each part as Parquet, and in which fold (1, 2 …) a row was held out, if in any."""
        held = np.zeros(len(row_ids), np.int64)
        for number, fold in enumerate(folds, 1):
            held[fold.test] = number
        parts = []
        for name in PARTS:
            rows = getattr(self, name)
            parts.append(pl.DataFrame({ROW_ID: row_ids[rows], "part": name, "fold": held[rows]}))
        saved = pl.concat(parts)
        (saved if folds else saved.drop("fold")).write_parquet(path)


def load_split(path: Path, row_ids: Array) -> Split:
    """Read a saved split back as positions in `row_ids`; rows that are gone are left out."""
    saved = pl.read_parquet(path)
    at = pl.DataFrame({ROW_ID: row_ids, "position": np.arange(len(row_ids))})
    joined = saved.join(at, on=ROW_ID, how="inner", maintain_order="left")
    parts = {name: joined.filter(pl.col("part") == name)["position"].to_numpy().astype(np.int64) for name in PARTS}
    return Split(**parts, method="saved")


@dataclass(frozen=True, slots=True)
class Division:
    """A split, and the way to divide its rows further as it was made."""

    split: Split
    divider: Divider
    y: Array
    task: Task
    validation: float  # share of the rows that are not test rows

    def folds(self, count: int) -> tuple[Split, ...]:
        """A split for each of `count` folds of the rows that are not test rows; its test part is what is held out."""
        rows = np.sort(np.concatenate([self.split.train, self.split.validation]))
        found = []
        for number, (rest, held) in enumerate(self.divider.folds(rows, count), 1):
            train, validation = self.divider.cut(rest, self.validation)
            if not len(train):
                msg = f"the other rows of fold {number} cannot be divided again; it takes more folds, groups or times"
                raise InvalidData.at("evaluation", "folds", msg=msg)
            if _one_class(self.y[train], self.task):
                msg = f"the training rows of fold {number} hold one class only; ask for fewer folds"
                raise InvalidData.at("evaluation", "folds", msg=msg)
            found.append(Split(train, validation, held, f"fold {number} of {count}"))
        return tuple(found)

    def with_share(self, share: float) -> Split | None:
        """The same split with that share of its training rows; along time the newest. None if that is one class."""
        train = self.divider.cut(self.split.train, share)[1]
        return None if _one_class(self.y[train], self.task) else replace(self.split, train=train)


def split_rows(
    y: Array, task: Task, spec: SplitSpec, given: list[str | None] | None = None, by: pl.Series | None = None
) -> Split:
    """Divide rows once; see `divide_rows`."""
    return divide_rows(y, task, spec, given, by).split


def divide_rows(
    y: Array, task: Task, spec: SplitSpec, given: list[str | None] | None = None, by: pl.Series | None = None
) -> Division:
    """Divide rows.

    Args:
        y: int64 class indices [N], or values [N].
        task: what is learned.
        spec: the method, shares and seed.
        given: each row's part where the data set brings its own division; `auto` follows it.
        by: the column that `spec.by` names, N values.

    Raises:
        InvalidData: the rows cannot be divided so; the field is named.
    """
    if len(y) < MIN_ROWS:
        raise InvalidData.at("dataset", msg=f"{len(y)} usable rows are too few; at least {MIN_ROWS} are needed")
    if spec.method == "stratified" and task == "regression":
        raise InvalidData.at("split", "method", msg="stratified needs classes; use random for regression")
    strata = class_strata(y, task, spec)
    divider: Divider = Shuffled(strata, spec.seed)
    method, share = "random" if strata is None else "stratified", spec.validation / (1 - spec.test)
    split = None
    if spec.by is not None and by is not None:
        method = spec.by[0]
        _check_present(by, method)
        if method == "column":
            split = _named_parts(by, spec, divider)
        else:
            divider = divider_by(by, strata, spec)
    elif spec.method == "auto" and given is not None:
        split = _follow(given, spec, divider)
    if split is None:
        rest, test = divider.cut(np.arange(len(y)), spec.test)
        split = Split(*divider.cut(rest, share), test, method)
    for part, rows in split.sizes().items():
        if not rows:
            raise InvalidData.at("split", msg=f"no row is left for the {part} part; divide another way")
    if _one_class(y[split.train], task):
        hint = "divide another way, or use more data" if spec.by else "use another seed or more data"
        raise InvalidData.at("split", msg=f"the training rows hold one class only; {hint}")
    return Division(split, divider, y, task, share)


def class_strata(y: Array, task: Task, spec: SplitSpec) -> Array | None:
    """Class indices [N] that the parts hold in proportion; None where they need not."""
    return y if task == "classification" and spec.method != "random" else None


def divider_by(by: pl.Series, strata: Array | None, spec: SplitSpec) -> Grouped | Ordered:
    """By the groups or along the times of the column that `spec.by` names, N values. InvalidData if it cannot."""
    return Grouped(group_codes(by), strata, spec.seed) if spec.group is not None else Ordered(_times(by))


def _follow(given: Sequence[str | None], spec: SplitSpec, divider: Divider) -> Split | None:
    """The data set's own division. Without a test part its validation part is the test, so that none is tuned on."""
    named = np.asarray([_GIVEN.get((name or "").strip().lower(), "") for name in given])
    rows: dict[str, Rows] = {part: np.flatnonzero(named == part) for part in PARTS}
    if (named == "").any() or not len(rows["train"]):
        return None
    if not len(rows["test"]):
        rows["test"], rows["validation"] = rows["validation"], rows["test"]
    if not len(rows["test"]):
        return None
    if not len(rows["validation"]):
        rows["train"], rows["validation"] = divider.cut(rows["train"], spec.validation)
    return Split(rows["train"], rows["validation"], rows["test"], "given by the data set")


def _named_parts(by: pl.Series, spec: SplitSpec, divider: Divider) -> Split:
    """The division that a column's values name."""
    names = as_text(by).to_list()
    unknown = sorted({name for name in names if name.strip().lower() not in _GIVEN})
    if unknown:
        raise _bad_column("column", f"'{by.name}' holds {listed(unknown)}; parts are named {', '.join(_GIVEN)}")
    split = _follow(names, spec, divider)
    if split is None:
        there = sorted({_GIVEN[name.strip().lower()] for name in names})
        msg = f"'{by.name}' names {' and '.join(there)} rows only; rows to train on and rows to test by are needed"
        raise _bad_column("column", msg)
    return replace(split, method="column")


def group_codes(by: pl.Series) -> Array:
    """The group of each row, int64 [N]."""
    codes: Array = np.unique(np.asarray(as_text(by).to_list(), object), return_inverse=True)[1]
    if (count := int(codes.max()) + 1) < len(PARTS):
        msg = f"'{by.name}' has {count} group{'s' * (count > 1)}, and each part needs one; name a column with more"
        raise _bad_column("group", msg)
    return codes


def _times(by: pl.Series) -> Array:
    """Numbers [N] in the order of the column's dates or numbers."""
    if by.dtype == pl.Boolean or not (by.dtype.is_numeric() or by.dtype.is_temporal()):
        examples = listed(as_text(by.alias("").unique(maintain_order=True).head(4)).to_list(), 3)
        msg = f"'{by.name}' holds no dates or numbers, but {examples}; write dates as 2024-03-01 or 2024-03-01T10:30:00"
        raise _bad_column("time", msg)
    times = by.to_physical().to_numpy()
    if (count := len(np.unique(times))) < len(PARTS):
        msg = f"'{by.name}' has {count} different time{'s' * (count > 1)}, and each part needs one; name another column"
        raise _bad_column("time", msg)
    return times


def _check_present(by: pl.Series, field: str) -> None:
    column = by.alias("")  # some names are patterns to polars
    missing = (column.fill_nan(None) if column.dtype.is_float() else column).null_count()
    if missing:
        remedy = f"fill them, or drop those rows (clean: drop_missing, columns: ['{by.name}'])"
        raise _bad_column(field, f"'{by.name}' is missing in {missing} of {len(by)} rows; {remedy}")


def _bad_column(field: str, msg: str) -> InvalidInput:
    return InvalidData.at("split", field, msg=msg)


def _one_class(y: Array, task: Task) -> bool:
    return task == "classification" and len(np.unique(y)) < 2  # noqa: PLR2004 - one class
