"""Check a job spec against what is registered."""

from app.core.errors import FieldError, InvalidSpec, NotFound
from app.core.resources import DatasetVersion
from app.registry.datasets import DatasetReader
from app.registry.models import ModelReader
from app.registry.session import ReadSession, WriteSession
from app.services.deploy_version import check_deploy
from app.specs.families import family
from app.specs.jobs import CompressSpec, TrainSpec, parse_dataset


class SpecChecker:
    """Checks the specs of one transaction; a data set that several name is looked up once."""

    def __init__(self, session: ReadSession | WriteSession) -> None:
        self._session = session
        self._datasets = DatasetReader(session)
        self._models = ModelReader(session)
        self._seen: dict[str, DatasetVersion] = {}

    async def check(self, spec: TrainSpec | CompressSpec) -> list[str]:
        """Ids of jobs to wait for. InvalidSpec names what does not fit."""
        return await (self._check_train(spec) if isinstance(spec, TrainSpec) else self._check_compress(spec))

    async def _check_train(self, spec: TrainSpec) -> list[str]:
        if spec.deploy is not None:
            await check_deploy(self._session, spec.model, spec.deploy.endpoint)
        try:
            data = await self._dataset(spec.dataset)
        except NotFound as error:
            raise InvalidSpec.at("dataset", msg=error.detail, type="not_found") from None
        if data.state == "failed":
            reason = (data.error or {}).get("detail", "unknown")
            raise InvalidSpec.at("dataset", msg=f"'{spec.dataset}' could not be ingested: {reason}")
        if data.state == "ingesting":  # its columns are not known yet; whether they can be stored is
            _check_storable(spec)
            return [*spec.after, *([data.job_id] if data.job_id else [])]
        _check_columns(data, spec)
        return spec.after

    async def _check_compress(self, spec: CompressSpec) -> list[str]:
        try:
            version = await self._models.version(spec.model, spec.version)
        except NotFound as error:
            raise InvalidSpec.at("version", msg=error.detail, type="not_found") from None
        data = version.lineage["dataset"]
        if data is None:
            msg = f"'{spec.model}@{spec.version}' was imported, and compression is measured on the data of a training"
            raise InvalidSpec.at("version", msg=msg)
        try:
            await self._dataset(data)
        except NotFound as error:
            msg = f"compression is measured on the version's own data, but {error.detail}"
            raise InvalidSpec.at("version", msg=msg, type="not_found") from None
        return spec.after

    async def _dataset(self, ref: str) -> DatasetVersion:
        if ref not in self._seen:
            self._seen[ref] = await self._datasets.version(*parse_dataset(ref), files=False)
        return self._seen[ref]


def _check_columns(data: DatasetVersion, spec: TrainSpec) -> None:
    expected = family(spec.family).data
    if data.kind != expected:
        msg = f"family '{spec.family}' learns from {expected} data, but '{spec.dataset}' is {data.kind}"
        raise InvalidSpec.at("family", msg=msg)
    known = [column["name"] for column in data.columns]
    errors = [
        FieldError(loc, f"there is no column '{name}'", "unknown_column")
        for loc, name in _named(spec)
        if name not in known
    ]
    if errors:
        shown = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")  # noqa: PLR2004 - enough to see the mistake
        raise InvalidSpec(f"'{spec.dataset}' has these columns: {shown}", errors=errors)
    if spec.target in spec.features.drop:
        raise InvalidSpec.at("features", "drop", msg=f"'{spec.target}' is the target and cannot be dropped")
    target = next(column for column in data.columns if column["name"] == spec.target)
    if data.rows is not None and target["missing"] >= data.rows:
        raise InvalidSpec.at("target", msg=f"every value of '{spec.target}' is missing; choose a column with labels")
    if spec.task == "classification" and target.get("unique") == 1:
        raise InvalidSpec.at("target", msg=f"'{spec.target}' has one class only; choose a target with two or more")
    if spec.task == "regression" and target["type"] not in {"integer", "number"}:
        raise InvalidSpec.at("target", msg=f"'{spec.target}' is {target['type']}; regression needs numbers")


def _check_storable(spec: TrainSpec) -> None:
    msg = "must not hold a NUL character"  # PostgreSQL keeps none in JSON
    errors = [FieldError(loc, msg, "string_pattern_mismatch") for loc, name in _named(spec) if "\0" in name]
    if errors:
        raise InvalidSpec(f"{errors[0].loc[0]}: {msg}", errors=errors)


def _named(spec: TrainSpec) -> list[tuple[tuple[str | int, ...], str]]:
    """(where, column) for every column that the spec names."""
    named: list[tuple[tuple[str | int, ...], str]] = [(("target",), spec.target)]
    named += [(("features", "drop", i), name) for i, name in enumerate(spec.features.drop)]
    named += [(("features", "types", name), name) for name in spec.features.types]
    named += [(("features", "steps", i, "column"), step.column) for i, step in enumerate(spec.features.steps)]
    for i, step in enumerate(spec.clean):
        columns: list[str] = getattr(step, "columns", [])
        named += [(("clean", i, "columns", k), name) for k, name in enumerate(columns)]
    return named
