"""The recipe of a training: fitted step by step, then one with the family's graph."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx

from app.core.errors import InvalidData, InvalidSpec
from app.core.signature import Signature, Tensor
from app.specs.families import family
from app.specs.features import RECIPE_VERSION, FeatureStep, Impute
from app.specs.jobs import TrainSpec
from workers.context import JobContext
from workers.export.graph import Graph
from workers.export.runtime import Session, open_session
from workers.families.base import Family, Fitted, load_family
from workers.features import categories, combine, dates, numbers
from workers.features.aggregate import aggregate
from workers.features.derive import derive
from workers.features.fitting import Fitting
from workers.features.stage import KINDS, Kind, Stage, Table, doubles, rows_at_once
from workers.learning import Array, Inputs, LearningData, Part, RowGroups, rows_of, take

_BATCH = 8192
_LARGEST = float(np.finfo(np.float32).max)
_TYPES: Mapping[Kind, Literal["FP32", "BYTES"]] = {"numeric": "FP32", "categorical": "BYTES"}
_FLOAT, _DOUBLE = 1, 11  # ONNX element types
Made = tuple[list[Stage], dict[str, Any]]
_FITS: Mapping[str, Callable[[Any, Fitting], Made]] = {
    "clip": numbers.clip, "scale": numbers.scale, "bin": numbers.bins,
    "one_hot": categories.one_hot, "ordinal": categories.ordinal, "target_encode": categories.target_encode,
    "hash": categories.hashed, "date_parts": dates.date_parts, "interact": combine.interact,
    "polynomial": combine.polynomial, "pca": combine.pca, "svd": combine.svd, "select": combine.select,
    "aggregate": aggregate, "derive": derive,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recipe:
    """Fitted steps between the raw signature and the one that the family learns from.

    `report` says of each step what it did to the training rows.
    """

    raw: Signature
    signature: Signature
    stages: tuple[Stage, ...]
    report: tuple[dict[str, Any], ...]

    def transform(self, inputs: Inputs, threads: int) -> dict[str, Array]:
        """Raw tensors to those that the family knows, by the nodes that are served."""
        return self.run(self.session(threads), inputs)

    def session(self, threads: int) -> Session:
        """The recipe alone, for `run`."""
        graph = Graph()
        for name, value in self._nodes(graph).items():
            graph.add("Identity", value, output=f"made {name}")
        outputs = [replace(tensor, name=f"made {tensor.name}") for tensor in self.signature.inputs]
        return open_session(graph.model(self.raw.inputs, outputs).SerializeToString(), threads)

    def run(self, session: Session, inputs: Inputs) -> dict[str, Array]:
        """Raw tensors to those that the family knows."""
        batch = rows_at_once(_BATCH, *self.stages)
        parts = [
            session.run(None, take(inputs, slice(start, start + batch))) for start in range(0, rows_of(inputs), batch)
        ]
        names = [tensor.name for tensor in self.signature.inputs]
        return {name: np.concatenate(columns) for name, columns in zip(names, zip(*parts, strict=True), strict=True)}

    def join(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The family's graph behind the recipe's, with the raw signature."""
        graph = Graph()
        answer = graph.include(model, "model", self._nodes(graph))
        graph.add("Identity", answer, output=self.raw.outputs[0].name)
        joined = graph.model(self.raw.inputs, self.raw.outputs)
        joined.metadata_props.extend(model.metadata_props)
        return joined

    def _nodes(self, graph: Graph) -> dict[str, str]:
        """From the raw inputs to the name of each tensor of `signature`; numbers are FP64 in between."""
        raw = {tensor.name: tensor.shape[1] for tensor in self.raw.inputs}
        names: dict[Kind, str | None] = {kind: kind if kind in raw else None for kind in KINDS}
        if "numeric" in raw:
            names["numeric"] = graph.add("Cast", "numeric", to=_DOUBLE)
        widths: dict[Kind, int] = {kind: raw.get(kind, 0) for kind in KINDS}
        for stage in self.stages:
            found = stage.to_nodes(graph, names, widths)
            widths[stage.kind] -= len(stage.drop)
            widths[stage.makes] += len(stage.made)
            names = {kind: found.get(kind) for kind in KINDS}
        result = {kind: name for kind, name in names.items() if name is not None}
        if "numeric" in result:  # what a 32-bit float cannot hold counts as missing
            number = result["numeric"]
            fits = graph.add("LessOrEqual", graph.add("Abs", number), doubles(graph, _LARGEST))
            held = graph.add("Where", fits, number, doubles(graph, np.nan))
            result["numeric"] = graph.add("Cast", held, to=_FLOAT)
        return {str(kind): name for kind, name in result.items()}


def fit_recipe(steps: Sequence[FeatureStep], data: LearningData) -> tuple[Recipe, LearningData]:
    """Fit the steps on training rows, and give what a family learns from behind them.

    Raises:
        InvalidSpec, InvalidData: a step does not suit its columns, or their values; it is named.
    """
    raw = data.signature
    train, validation = (Table.of(raw, part.inputs) for part in (data.train, data.validation))
    stages: list[Stage] = []
    report = []
    for i, step in enumerate(steps):
        before = train.width
        made, facts = _fit(step, Fitting(train, data, ("features", "steps", i), step))
        for stage in made:
            train, validation = stage.apply(train, learnt=True), stage.apply(validation)
        if not train.width:
            raise InvalidData.at("features", "steps", i, msg="no column is left to learn from; keep some")
        report.append({"step": step.step, "columns_before": before, "columns_after": train.width, **facts})
        stages += (replace(stage, crossed=None) for stage in made)
    widths = {kind: len(train.columns[kind]) for kind in KINDS}
    inputs = [
        Tensor("numeric", "FP32", (-1, widths["numeric"])),
        Tensor("categorical", "BYTES", (-1, widths["categorical"])),
    ]
    signature = replace(raw, inputs=tuple(t for t in inputs if t.shape[1]), columns=train.signature_columns())
    parts = [Part(_inputs(table), y) for table, y in ((train, data.train.y), (validation, data.validation.y))]
    recipe = Recipe(raw, signature, tuple(stages), tuple(report))
    streamed = data.streamed and _Made(data.streamed, recipe, recipe.session(data.threads))
    return recipe, replace(data, signature=signature, train=parts[0], validation=parts[1], streamed=streamed)


@dataclass(frozen=True, slots=True)
class _Made:
    """Training rows that do not fit memory, as the recipe makes them."""

    rows: RowGroups
    recipe: Recipe
    session: Session

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def y(self) -> Array:
        """As before."""
        return self.rows.y

    @property
    def sizes(self) -> tuple[int, ...]:
        """As before."""
        return self.rows.sizes

    def read(self, at: int) -> Part:
        """One group, through the recipe."""
        part = self.rows.read(at)
        return Part(self.recipe.run(self.session, part.inputs), part.y)


def _fit(step: FeatureStep, on: Fitting) -> Made:
    return _impute(step, on) if isinstance(step, Impute) else _FITS[step.step](step, on)


def _impute(step: Impute, on: Fitting) -> Made:
    """Of numbers, of categories, or of both, as the strategy allows."""
    text = isinstance(step.value, str)
    numeric = step.strategy in {"median", "mean", "most_frequent"} or not text
    categorical = step.strategy == "most_frequent" or text
    known = {
        *(on.table.names("numeric") if numeric else ()), *(on.table.names("categorical") if categorical else ())
    }  # fmt: skip
    for j, name in enumerate(step.columns or []):
        if name not in known:
            of = "numbers and categories" if numeric and categorical else "numbers" if numeric else "categories"
            how = (
                f"{step.strategy} of a {'text' if text else 'number'}" if step.strategy == "constant" else step.strategy
            )
            msg = f"'{name}' is not a used column of {of}, which {how} fills; choose another strategy or column"
            raise InvalidSpec.at(*on.where, "columns", j, msg=msg, type="unsuited_column")
    stages, facts = numbers.impute_numbers(step, on) if numeric else ([], {})
    if categorical:
        more, told = categories.impute_categories(step, on)
        stages, facts = stages + more, {key: facts.get(key, {}) | told.get(key, {}) for key in ("filled", "values")}
    return stages, facts


def _inputs(table: Table) -> dict[str, Array]:
    """As the graph gives them: a number that a 32-bit float cannot hold counts as missing."""
    x = table.tensors["numeric"]
    x = np.where(np.abs(x) <= _LARGEST, x, np.nan).astype(np.float32)
    found = {"numeric": x, "categorical": table.tensors["categorical"]}
    return {name: value for name, value in found.items() if value.shape[1]}


def learner_of(spec: TrainSpec) -> Family:
    """The family of a spec, behind the recipe if it has one."""
    learner = load_family(family(spec.family), spec.params)
    return WithRecipe(learner, tuple(spec.features.steps), learner.devices) if spec.features.steps else learner


@dataclass(slots=True)
class WithRecipe:
    """A family that fits a recipe first, and learns from what the recipe makes."""

    learner: Family
    steps: tuple[FeatureStep, ...]
    devices: tuple[str, ...]

    def fit(self, data: LearningData, job: JobContext) -> "FittedWithRecipe":
        """Raises what the family raises, and InvalidSpec or InvalidData for a step that does not suit the data."""
        recipe, made = fit_recipe(self.steps, data)
        job.log(f"the recipe made {len(recipe.signature.columns)} columns of {len(recipe.raw.columns)}")
        return FittedWithRecipe(recipe, self.learner.fit(made, job), data.threads)


@dataclass(frozen=True, slots=True)
class FittedWithRecipe:
    """Takes raw inputs, as callers send them."""

    recipe: Recipe
    fitted: Fitted
    threads: int

    def predict(self, inputs: Inputs) -> Array:
        """By the trained family, of what the recipe makes."""
        return self.fitted.predict(self.recipe.transform(inputs, self.threads))

    def to_onnx(self) -> onnx.ModelProto:
        """Recipe and family in one graph."""
        return self.recipe.join(self.fitted.to_onnx())

    def facts(self) -> dict[str, Any]:
        """Those of the family, and under `recipe` what each step did to the training rows."""
        return self.fitted.facts() | {"recipe": {"version": RECIPE_VERSION, "steps": list(self.recipe.report)}}
