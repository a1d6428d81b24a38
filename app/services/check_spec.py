"""Check a job spec against what is registered."""

from collections.abc import Sequence

from app.core.errors import FieldError, InvalidSpec, NotFound
from app.core.resources import DatasetVersion, ModelVersion
from app.core.signature import Signature
from app.registry.datasets import DatasetReader
from app.registry.models import ModelReader
from app.registry.session import ReadSession, WriteSession
from app.services.deploy_version import check_deploy
from app.specs.clean import check_clean, named_by_clean
from app.specs.compression import CompressBudget
from app.specs.families import Family, family
from app.specs.jobs import (
    CompressSpec,
    EvaluateSpec,
    MeasureSpec,
    ReproduceSpec,
    SubmittedSpec,
    TrainSpec,
    parse_dataset,
)
from app.specs.mapping import check_judging

_JudgedSpec = CompressSpec | EvaluateSpec | MeasureSpec
_TRIES_SHARE = 0.9  # of a job's time may go to families that are tried and to compression
_Named = tuple[tuple[str | int, ...], str]  # where a spec names a column, and which


class SpecChecker:
    """Checks the specs of one transaction; a data set that several name is looked up once."""

    def __init__(self, session: ReadSession | WriteSession) -> None:
        self._session = session
        self._datasets = DatasetReader(session)
        self._models = ModelReader(session)
        self._seen: dict[str, DatasetVersion] = {}

    async def check(self, spec: SubmittedSpec) -> list[str]:
        """Ids of jobs to wait for. InvalidSpec names what does not fit."""
        if isinstance(spec, TrainSpec):
            _check_search(spec.compress, spec.timeout_s, "compress")
            _check_tries(spec)
            return await self._check_train(spec)
        if isinstance(spec, CompressSpec):
            _check_search(spec.budget, spec.timeout_s, "budget")
        try:
            version = await self._models.version(spec.model, spec.version)
        except NotFound as error:
            raise InvalidSpec.at("version", msg=error.detail, type="not_found") from None
        own = version.lineage["dataset"]
        if isinstance(spec, ReproduceSpec):
            return await self._check_own(spec, own)
        _check_given(spec, trained=own is not None)
        if own is not None and isinstance(spec, CompressSpec | MeasureSpec):
            return await self._check_own(spec, own)
        return await self._check_labelled(spec, version)

    async def _check_train(self, spec: TrainSpec) -> list[str]:
        if spec.deploy is not None:
            await check_deploy(self._session, spec.model, spec.deploy.endpoint)
        data = await self._usable(spec.dataset)
        if data.state == "ingesting":  # its columns are not known yet; whether they can be stored is
            _check_storable(_named(spec))
            return [*spec.after, *([data.job_id] if data.job_id else [])]
        _check_columns(data, spec)
        return spec.after

    async def _check_own(self, spec: CompressSpec | MeasureSpec | ReproduceSpec, own: str | None) -> list[str]:
        """Of what needs the data of the version's training: is it still there?"""
        if own is None:
            msg = f"'{spec.model}@{spec.version}' was imported; there is no training that could be repeated"
            raise InvalidSpec.at("version", msg=msg)
        try:
            await self._dataset(own)
        except NotFound as error:
            msg = f"a {spec.kind} job needs the data that the version was trained on, but {error.detail}"
            raise InvalidSpec.at("version", msg=msg, type="not_found") from None
        return spec.after

    async def _check_labelled(self, spec: _JudgedSpec, version: ModelVersion) -> list[str]:
        """Of a job that brings a data set: does it fit the version?"""
        if spec.dataset is None:
            msg = f"'{spec.model}@{spec.version}' was imported; name a data set with labels that judges its variants"
            raise InvalidSpec.at("dataset", msg=msg, type="missing")
        data = await self._usable(spec.dataset)
        slices: list[_Named] = []
        if isinstance(spec, EvaluateSpec):
            slices = [(("slices", at), name) for at, name in enumerate(spec.slices)]
        if data.state == "ingesting":  # the job looks at its columns
            _check_storable(slices)
            return [*spec.after, *([data.job_id] if data.job_id else [])]
        names = [column["name"] for column in data.columns]
        check_judging(spec.mapping, Signature.from_json(version.signature), data.kind, names)
        _check_known(spec.dataset, names, slices)
        return spec.after

    async def _usable(self, ref: str) -> DatasetVersion:
        """A data set that a job may name, perhaps still being ingested."""
        try:
            data = await self._dataset(ref)
        except NotFound as error:
            raise InvalidSpec.at("dataset", msg=error.detail, type="not_found") from None
        if data.state == "failed":
            reason = (data.error or {}).get("detail", "unknown")
            raise InvalidSpec.at("dataset", msg=f"'{ref}' could not be ingested: {reason}")
        return data

    async def _dataset(self, ref: str) -> DatasetVersion:
        if ref not in self._seen:
            self._seen[ref] = await self._datasets.version(*parse_dataset(ref), files=False)
        return self._seen[ref]


def _check_search(budget: CompressBudget | None, timeout_s: float, where: str) -> None:
    """A search that takes all of a job's time ends with nothing."""
    seconds = budget.search_s if budget is not None else None
    if seconds is not None and seconds >= timeout_s:
        msg = f"the search takes {seconds:g} s and the job may take {timeout_s:g}; lower it, or raise timeout_s"
        raise InvalidSpec.at(where, "time_limit_s", msg=msg)


def _check_tries(spec: TrainSpec) -> None:
    """Trying families leaves time for the export, for judging and for the search, or all that was learnt is lost."""
    seconds = float(spec.params.get("time_limit_s", 0)) if family(spec.family).tries else 0.0
    search_s = (spec.compress.search_s if spec.compress is not None else None) or 0.0
    left = _TRIES_SHARE * spec.timeout_s - search_s
    if seconds > left:
        taken = f", {search_s:g} s of it for compression" if search_s else ""
        msg = (
            f"training takes {seconds:g} s and the job may take {spec.timeout_s:g}{taken}; export and judging take "
            f"time as well: lower it to {max(0.0, left):g} at most, or raise timeout_s"
        )
        raise InvalidSpec.at("params", "time_limit_s", msg=msg)


def _check_given(spec: _JudgedSpec, *, trained: bool) -> None:
    """What an imported version needs, and one that was trained here knows."""
    what = f"'{spec.model}@{spec.version}'"
    if not trained and spec.mapping is None:
        msg = f"{what} was imported: say its task, and which columns fill its inputs"
        raise InvalidSpec.at("mapping", msg=msg, type="missing")
    if trained and spec.mapping is not None:
        raise InvalidSpec.at("mapping", msg=f"{what} was trained here and knows its columns; leave it out")
    if trained and not isinstance(spec, EvaluateSpec) and spec.dataset is not None:
        msg = f"{what} was trained here and is judged by the rows of its training; leave it out"
        raise InvalidSpec.at("dataset", msg=msg)


def _check_columns(data: DatasetVersion, spec: TrainSpec) -> None:
    expected = family(spec.family)
    if data.kind != expected.dataset:
        msg = f"family '{spec.family}' learns from {expected.data} data, but '{spec.dataset}' is {data.kind}"
        raise InvalidSpec.at("family", msg=msg)
    _check_kinds(data, spec, expected)
    _check_known(spec.dataset, [column["name"] for column in data.columns], _named(spec))
    if spec.target in spec.features.drop:
        raise InvalidSpec.at("features", "drop", msg=f"'{spec.target}' is the target and cannot be dropped")
    types = {column["name"]: column["type"] for column in data.columns}
    spec.features.check_steps(types, spec.target)
    check_clean(spec.clean, types)
    target = next(column for column in data.columns if column["name"] == spec.target)
    if data.rows is not None and target["missing"] >= data.rows:
        raise InvalidSpec.at("target", msg=f"every value of '{spec.target}' is missing; choose a column with labels")
    if spec.task == "classification" and target.get("unique") == 1:
        raise InvalidSpec.at("target", msg=f"'{spec.target}' has one class only; choose a target with two or more")
    if spec.evaluation.threshold is not None and not spec.clean and (target.get("unique") or 2) > 2:  # noqa: PLR2004 - two classes
        msg = f"'{spec.target}' has {target['unique']} classes; a threshold tells two apart, so leave it out"
        raise InvalidSpec.at("evaluation", "threshold", msg=msg)
    if spec.task == "regression" and target["type"] not in {"integer", "number"}:
        raise InvalidSpec.at("target", msg=f"'{spec.target}' is {target['type']}; regression needs numbers")


def _check_kinds(data: DatasetVersion, spec: TrainSpec, expected: Family) -> None:
    """A family of texts needs one, and a family of tables something else; `features.types` may make either of it."""
    unused = {spec.target, *spec.features.drop}
    kinds = {column["type"] for column in data.columns if column["name"] not in unused}
    if spec.features.types or not kinds:
        return
    if expected.data == "text" and not kinds & {"text", "category"}:
        msg = f"'{spec.dataset}' has no column of text; name one as text in features.types, or use a family of tables"
        raise InvalidSpec.at("family", msg=msg)
    if expected.data == "tabular" and kinds == {"text"}:
        msg = f"only text is left to learn from, which '{spec.family}' does not read; use text_linear"
        raise InvalidSpec.at("family", msg=msg)


def _check_known(dataset: str, known: Sequence[str], named: Sequence[_Named]) -> None:
    errors = [
        FieldError(loc, f"there is no column '{name}'", "unknown_column") for loc, name in named if name not in known
    ]
    if errors:
        shown = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")  # noqa: PLR2004 - enough to see the mistake
        raise InvalidSpec(f"'{dataset}' has these columns: {shown}", errors=errors)


def _check_storable(named: Sequence[_Named]) -> None:
    msg = "must not hold a NUL character"  # PostgreSQL keeps none in JSON
    errors = [FieldError(loc, msg, "string_pattern_mismatch") for loc, name in named if "\0" in name]
    if errors:
        raise InvalidSpec(f"{errors[0].loc[0]}: {msg}", errors=errors)


def _named(spec: TrainSpec) -> list[_Named]:
    """(where, column) for every column that the spec names."""
    named: list[_Named] = [(("target",), spec.target)]
    named += [(("features", "drop", i), name) for i, name in enumerate(spec.features.drop)]
    named += [(("features", "types", name), name) for name in spec.features.types]
    named += spec.features.named_by_steps()
    return named + named_by_clean(spec.clean) + spec.dividing_columns()
