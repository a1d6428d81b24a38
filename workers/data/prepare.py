"""A data set folder and a spec to everything that a family learns from and is judged by."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from app.core.errors import InvalidData, InvalidSpec
from app.core.signature import Column, Signature, Tensor
from app.specs.clean import DropOutliers
from app.specs.data import DATA_FILE, PROFILE_FILE, ROW_ID
from app.specs.families import families, family
from app.specs.jobs import Resources, TrainSpec
from workers.context import JobContext
from workers.data.division import Divider, Grouped, Ordered
from workers.data.findings import listed
from workers.data.images import COPIES, COPIES_WITH_FOLDS, choose_format, decode_all
from workers.data.large import (
    Large,
    RowStream,
    among_held,
    divide_large,
    held_rows,
    is_large,
    load_parts,
    read_rows,
    with_gaps,
    without_row_numbers,
)
from workers.data.outliers import without_outliers
from workers.data.slices import slice_labels
from workers.data.splits import Division, Split, class_strata, divide_rows, divider_by, load_split
from workers.data.tables import (
    Notes,
    check_columns,
    choose_columns,
    clean_rows,
    rows_of_columns,
    table_inputs,
)
from workers.data.texts import choose_texts
from workers.data.values import Target, coarse_step, read_target
from workers.data.weights import class_weights
from workers.learning import Array, Inputs, LearningData, Part, Standard, take

IMAGE_COLUMN = "image"
SEPARATOR = "|"  # of labels, unless the spec names another
_REPEATS = 0.01  # share of the test rows from which on repeats are told of
_SHARES = (0.1, 0.25, 0.5)  # of the training rows, for the learning curve
_TOKEN_BYTES = 1000  # of a row of texts: some hundred words, as numbers of 64 bits
_ROOM = 10  # times as many possible rows as there are: with fewer, rows are alike by accident


@dataclass(frozen=True, slots=True)
class Closer:
    """What the evaluation looks at closer: cross-validation, a learning curve, and slices.

    `folds` are splits of the rows that are not test rows, `shares` splits with that share of the training rows,
    `slices` the slice of each row, [N] text, by column, and `groups` the group of each row [N], if rows are grouped.
    `calibration` are validation rows that no family sees, since prediction intervals are found by them. `divider` is
    how the rows were divided.
    """

    folds: tuple[Split, ...] = ()
    shares: Mapping[float, Split] = field(default_factory=dict)
    slices: Mapping[str, Array] = field(default_factory=dict)
    groups: Array | None = None
    calibration: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    divider: Divider | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """All rows as tensors, the target in its own unit, and the split over them."""

    signature: Signature
    inputs: Inputs
    y: Array
    row_ids: Array
    split: Split
    notes: Notes
    closer: Closer = field(default_factory=Closer)
    large: Large | None = None

    @property
    def rows(self) -> dict[str, int]:
        """Rows of each part, in memory or not."""
        return (self.split if self.large is None else self.large.split).sizes()

    def save_split(self, path: Path) -> None:
        """Which row is in which part, and in which fold it was held out."""
        if self.large is not None:
            self.large.save(path)
        else:
            self.split.save(self.row_ids, path, self.closer.folds)

    def part(self, name: str) -> tuple[dict[str, Array], Array]:
        """Inputs and target of `train`, `validation` or `test`."""
        rows = getattr(self.split, name)
        return take(self.inputs, rows), self.y[rows]

    def learning(self, spec: TrainSpec, threads: int, device: str) -> LearningData:
        """What a family may see: training and validation rows."""
        train, y_train = self.part("train")
        watched = np.setdiff1d(self.split.validation, self.closer.calibration)
        validation, y_validation = take(self.inputs, watched), self.y[watched]
        standard, streamed = Standard(), None if self.large is None else self.large.train
        if spec.task == "regression":
            standard = Standard.of(y_train if streamed is None else streamed.y)
            y_train, y_validation = standard.shrink(y_train), standard.shrink(y_validation)
            streamed = streamed and replace(streamed, y=standard.shrink(streamed.y))
        return LearningData(
            self.signature, Part(train, y_train), Part(validation, y_validation), standard, spec.training,
            threads, device, metric=spec.main_metric(len(self.signature.classes)), streamed=streamed,
            class_weights=class_weights(
                spec.training.class_weight, self.signature.classes, y_train if streamed is None else streamed.y
            ),
            folds=self._folds(np.concatenate([self.split.train, watched])),
        )  # fmt: skip

    def _folds(self, rows: Array) -> Callable[[int], Array] | None:
        """`LearningData.folds` of these rows, where groups or time say how they may be divided."""
        divider = self.closer.divider
        if isinstance(divider, Grouped):
            return lambda count: divider.fold_numbers(rows, count)
        if isinstance(divider, Ordered):  # what is left out must be newer: the validation rows
            return lambda _: np.where(np.isin(rows, self.split.validation), 0, -1)
        return None


def prepare(job: JobContext, spec: TrainSpec) -> Prepared:
    """Read, check, clean, encode the target and split."""
    folder = job.input / "dataset"
    profile = json.loads((folder / PROFILE_FILE).read_text(encoding="utf-8"))
    wanted = family(spec.family)
    if profile["kind"] != wanted.dataset:
        others = ", ".join(name for name, known in families().items() if known.dataset == profile["kind"])
        message = (
            f"'{spec.family}' learns from {wanted.data} data; {spec.dataset} is {profile['kind']}; use one of: {others}"
        )
        raise InvalidSpec.at("family", msg=message)
    notes = Notes()
    if wanted.data == "image":
        return _prepare_images(job, spec, folder, notes)
    if is_large(profile, spec.resources.memory_mb, beside=_TOKEN_BYTES * (wanted.data == "text")):
        return _prepare_large(spec, folder / DATA_FILE, profile, notes)
    frame = pl.read_parquet(folder / DATA_FILE)
    check_columns(frame, spec)
    frame = clean_rows(frame, spec, notes)
    types = {c["name"]: c["type"] for c in profile["columns"]}
    target = read_labels(frame[spec.target], spec)
    step = coarse_step(frame[spec.target]) if spec.task == "regression" else None
    if step:
        notes.warnings.append(f"predictions of '{spec.target}' are told apart by {step:g} only; subtract a constant")
    choose = choose_texts if wanted.data == "text" else choose_columns
    columns, inputs = choose(frame, types, spec, notes)
    signature = _signature(spec, columns, inputs, target)
    division = divide_rows(target.y, spec.task, spec.split, by=_divides_by(frame, spec))
    split, closer = division.split, _look_closer(frame, spec, division)
    notes.warnings += split.lacks(target.classes, target.y)
    if any(isinstance(step, DropOutliers) for step in spec.clean):
        numbers = [c.name for c in columns if c.type in {"number", "integer"}]
        split, closer = _clean_training_rows(frame, numbers, target.y, spec, (split, closer), notes)
    used = [*(c.name for c in columns), spec.target]
    if prod(frame[name].n_unique() for name in used) >= _ROOM * len(frame):
        _warn_of_repeats(rows_of_columns(frame, used), split, notes)
    row_ids = frame[ROW_ID].to_numpy()
    return Prepared(signature, table_inputs(frame, signature), target.y, row_ids, split, notes, closer)


def read_labels(column: pl.Series, spec: TrainSpec) -> Target:
    """The target; its classes in the order of `spec.ordinal`, which names each label that there is, and no other."""
    target = read_target(column, spec.task, separator=spec.separator or SEPARATOR)
    if spec.ordinal is None:
        return target
    for label in target.classes:
        if label not in spec.ordinal:
            raise InvalidSpec.at("ordinal", msg=f"rows have the label '{label}', which is not named; give it a place")
    for at, label in enumerate(spec.ordinal):
        if label not in target.classes:
            msg = f"no row has the label '{label}'; the labels are {listed(list(target.classes))}"
            raise InvalidSpec.at("ordinal", at, msg=msg)
    return read_target(column, spec.task, tuple(spec.ordinal))


def _prepare_large(spec: TrainSpec, path: Path, profile: Mapping[str, Any], notes: Notes) -> Prepared:
    """Rows that are held of a table that does not fit memory, and where the others are."""
    for name in ("folds", "learning_curve"):
        if getattr(spec.evaluation, name):
            msg = "this table is too large for further fits in resources.memory_mb; raise it, or leave this out"
            raise InvalidData.at("evaluation", name, msg=msg)
    wanted = {"task": spec.task == "multilabel", "ordinal": spec.ordinal is not None}
    for where, asked in [*wanted.items(), ("evaluation.intervals", spec.evaluation.intervals is not None)]:
        if asked:
            msg = "this table is too large for that in resources.memory_mb; raise it, or leave this out"
            raise InvalidData.at(*where.split("."), msg=msg)
    divided = divide_large(path, spec, profile, notes)
    held = held_rows(divided.split, profile, spec.resources.memory_mb)
    positions, split = among_held(held)
    frame = read_rows(path, positions)
    types = {c["name"]: c["type"] for c in profile["columns"]}
    choose = choose_texts if family(spec.family).data == "text" else choose_columns
    columns, inputs = choose(without_row_numbers(frame, spec, profile, notes), types, spec, notes)
    target = Target(divided.target_of(positions), divided.classes)
    signature = _signature(spec, with_gaps(columns, profile), inputs, target)
    notes.warnings += [*split.lacks(target.classes, target.y), divided.told(held)]
    rows = divided.split.train
    slices = {name: slice_labels(frame[name]) for name in spec.evaluation.slices}
    by = None if spec.split.column is not None else _divides_by(frame, spec)
    divider = None if by is None else divider_by(by, class_strata(target.y, spec.task, spec.split), spec.split)
    closer = Closer(slices=slices, groups=_groups_of(divider), divider=divider)
    return Prepared(
        signature, table_inputs(frame, signature), target.y, positions, split, notes, closer=closer,
        large=Large(divided.split, RowStream(path, signature, rows, divided.target_of(rows))),
    )  # fmt: skip


def _divides_by(frame: pl.DataFrame, spec: TrainSpec) -> pl.Series | None:
    """The column that the split reads, if it reads one."""
    return None if spec.split.by is None else frame[spec.split.by[1]]


def _look_closer(frame: pl.DataFrame, spec: TrainSpec, division: Division) -> Closer:
    asked = spec.evaluation
    shares = {share: division.with_share(share) for share in _SHARES} if asked.learning_curve else {}
    return Closer(
        division.folds(asked.folds) if asked.folds else (),
        {share: split for share, split in shares.items() if split is not None},
        {name: slice_labels(frame[name]) for name in asked.slices},
        _groups_of(division.divider),
        _to_calibrate(spec, division),
        division.divider,
    )


def _groups_of(divider: Divider | None) -> Array | None:
    return divider.groups if isinstance(divider, Grouped) else None


def _to_calibrate(spec: TrainSpec, division: Division) -> Array:
    """Half of the validation rows, where intervals are not found by rows that other models left out."""
    if spec.evaluation.intervals is None or spec.evaluation.folds or family(spec.family).holds_out:
        return np.zeros(0, np.int64)
    watched, apart = division.divider.cut(division.split.validation, 0.5)
    if not len(watched):
        msg = "the validation rows cannot be divided once more; raise split.validation or ask for evaluation.folds"
        raise InvalidSpec.at("evaluation", "intervals", msg=msg)
    return apart


def _clean_training_rows(
    frame: pl.DataFrame, numbers: list[str], y: Array, spec: TrainSpec, found: tuple[Split, Closer], notes: Notes
) -> tuple[Split, Closer]:
    """The split, and those of folds and shares, each without the outliers of its own training rows."""
    split, closer = found

    def cleaned(one: Split) -> Split:
        return without_outliers(frame, numbers, y, spec, one)

    fewer = cleaned(split)
    notes.counts["drop_outliers"] = len(split.train) - len(fewer.train)
    shares = {share: cleaned(one) for share, one in closer.shares.items()}
    return fewer, replace(closer, folds=tuple(map(cleaned, closer.folds)), shares=shares)


def _warn_of_repeats(rows: pl.Series, split: Split, notes: Notes) -> None:
    repeats = int(rows[split.test].is_in(rows[split.train].implode()).sum())
    if repeats >= _REPEATS * len(split.test):
        notes.warnings.append(
            f"{repeats} of {len(split.test)} test rows are the same as a training row; if they are copies, they "
            "flatter the metrics; drop them (of tables, the cleaning step drop_duplicates does)"
        )


def _prepare_images(job: JobContext, spec: TrainSpec, folder: Path, notes: Notes) -> Prepared:
    path = folder / DATA_FILE
    table = read_image_table(path)
    check_columns(table, spec)
    if spec.target != "label":
        raise InvalidSpec.at("target", msg="picture data sets have the target 'label'")
    if spec.features != type(spec.features)() or spec.clean:
        raise InvalidSpec.at("features", msg="picture data sets take no features and no clean steps")
    table = table.with_row_index("__position")
    kept = clean_rows(table, spec, notes)
    target = read_labels(kept["label"], spec)
    fmt = choose_format(path, kept, spec.params.get("image_size"))
    copies = COPIES_WITH_FOLDS if family(spec.family).tries else COPIES
    pixels: Any = decode_all(path, fmt, len(table), job, copies, resizable="image_size" in spec.params)
    if len(kept) < len(table):
        pixels = pixels[kept["__position"].to_numpy()]
    image = Tensor("image", "UINT8", (-1, *pixels.shape[1:]))
    column = Column(IMAGE_COLUMN, "image", "image")
    signature = _signature(spec, (column,), (image,), target, fmt)
    given = kept["split"].cast(pl.String).to_list() if "split" in kept.columns else None
    division = divide_rows(target.y, spec.task, spec.split, given, _divides_by(kept, spec))
    split, closer = division.split, _look_closer(kept, spec, division)
    notes.warnings += split.lacks(target.classes, target.y)
    _warn_of_repeats(pl.Series([hash(picture.tobytes()) for picture in pixels]), split, notes)
    row_ids = kept[ROW_ID].to_numpy()
    return Prepared(signature, {"image": pixels}, target.y, row_ids, split, notes, closer=closer)


def read_image_table(path: Path) -> pl.DataFrame:
    """Everything of a picture data set but the pictures."""
    names = [name for name in pl.read_parquet_schema(path) if name != IMAGE_COLUMN]
    return pl.read_parquet(path, columns=names)


def _signature(
    spec: TrainSpec,
    columns: tuple[Column, ...],
    inputs: tuple[Tensor, ...],
    target: Target,
    image: Any = None,  # noqa: ANN401 - ImageFormat or None
) -> Signature:
    output = Tensor("value", "FP32", (-1,))
    if spec.task != "regression":
        output = Tensor("probabilities", "FP32", (-1, len(target.classes)))
    return Signature(
        spec.task,
        inputs,
        (output,),
        columns,
        target.classes,
        spec.target,
        image,
        ordinal=spec.ordinal is not None,
        separator=(spec.separator or SEPARATOR) if spec.task == "multilabel" else "",
    )


def reload(job: JobContext, signature: Signature, split_file: Path) -> Prepared:
    """The rows of an existing version again, from its signature, its saved split and its data set."""
    path = job.input / "dataset" / DATA_FILE
    fmt = signature.image
    profile = json.loads((path.parent / PROFILE_FILE).read_text(encoding="utf-8"))
    memory_mb = Resources.model_validate(job.spec.get("resources", {})).memory_mb
    if profile["kind"] == "tabular" and is_large(profile, memory_mb):
        positions, _ = among_held(held_rows(load_parts(split_file), profile, memory_mb))
        table = read_rows(path, positions)
    else:
        table = pl.read_parquet(path) if fmt is None else read_image_table(path)
    missing = [c.name for c in signature.columns if fmt is None and c.name not in table.columns]
    missing += [name for name in (signature.target, ROW_ID) if name not in table.columns]
    if missing:
        raise InvalidData.at("dataset", msg=f"columns of the model are not in the data set: {', '.join(missing)}")
    inputs: dict[str, Any]
    inputs = table_inputs(table, signature) if fmt is None else {"image": decode_all(path, fmt, len(table), job)}
    row_ids = table[ROW_ID].to_numpy()
    split = load_split(split_file, row_ids)
    used = np.concatenate([split.train, split.validation, split.test])
    target = read_target(table[signature.target][used], signature.learned_task, signature.classes, signature.separator)
    y = np.zeros((len(table), *target.y.shape[1:]), target.y.dtype)
    y[used] = target.y
    return Prepared(signature, inputs, y, row_ids, split, Notes())
