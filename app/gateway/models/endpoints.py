"""`/api/v1/models` and `/api/v1/compare`."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import ValidationError

from app.core.errors import InvalidInput, NotFound
from app.core.resources import ModelVersion
from app.core.version_folder import CARD, EXTERNAL, MODEL, NAMES, shown_as
from app.gateway.deps import (
    Gateway,
    GatewayDep,
    IdempotencyKey,
    PageDep,
    Reader,
    Trainer,
    VersionPath,
    name_cursor,
    number_cursor,
    only_once,
)
from app.gateway.errors import about, responses
from app.gateway.files import download, read_json
from app.gateway.jobs.schemas import JobOut
from app.gateway.models.schemas import (
    AliasIn,
    AliasOut,
    ComparisonOut,
    ComparisonRow,
    FileOut,
    ModelOut,
    ModelVersionOut,
)
from app.gateway.schemas import PageOf
from app.gateway.upload import Form, receive_upload
from app.registry.endpoints import EndpointReader
from app.registry.jobs import JobReader
from app.registry.models import ModelReader, ModelWriter
from app.services.import_model import import_model
from app.services.submit_job import submit_job
from app.specs.base import Name, field_error
from app.specs.jobs import ImportMetadata, ReproduceSpec, parse_dataset

router = APIRouter(prefix="/api/v1", tags=["models"])
MAX_DATA_FILES = 1000
_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["model"],
                    "properties": {
                        "model": {"type": "string", "format": "binary", "description": "the ONNX file"},
                        "data": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "description": "external data files, under the names that the model refers to",
                        },
                        "metadata": {
                            "type": "string",
                            "contentMediaType": "application/json",
                            "contentSchema": ImportMetadata.model_json_schema(),
                            "description": "what the sender says of the model, as a JSON object",
                            "example": '{"description": "exported from the churn notebook", "batched": null}',
                        },
                    },
                }
            }
        },
    }
}


async def _version(state: Gateway, model: str, version: int) -> ModelVersion:
    async with state.platform.database.read() as session:
        return await ModelReader(session).version(model, version)


@router.get("/models", operation_id="models_list", responses=responses())
async def list_all(state: GatewayDep, _: Reader, page: PageDep) -> PageOf[ModelOut]:
    """Models by name."""
    async with state.platform.database.read() as session:
        found = await ModelReader(session).page(page.limit, name_cursor(page))
    return PageOf(items=[ModelOut.of(model) for model in found.items], next_cursor=found.next_cursor)


@router.get("/models/{model}", operation_id="models_get", responses=responses(404))
async def get(model: str, state: GatewayDep, _: Reader) -> ModelOut:
    """One model."""
    async with state.platform.database.read() as session:
        return ModelOut.of(await ModelReader(session).get(model))


@router.get("/models/{model}/versions", operation_id="model_versions_list", responses=responses(404))
async def list_versions(model: str, state: GatewayDep, _: Reader, page: PageDep) -> PageOf[ModelVersionOut]:
    """Versions of a model, newest first."""
    async with state.platform.database.read() as session:
        found = await ModelReader(session).versions(model, page.limit, number_cursor(page))
    return PageOf(items=[ModelVersionOut.of(version) for version in found.items], next_cursor=found.next_cursor)


@router.post(
    "/models/{model}/versions",
    status_code=202,
    operation_id="model_versions_import",
    responses=responses(400, 409, 413),
    openapi_extra=_FORM,
)
async def import_version(
    model: Name, request: Request, response: Response, state: GatewayDep, caller: Trainer, key: IdempotencyKey
) -> JobOut:
    """Import an ONNX model as the next version; a job checks it, runs it, and makes the version if it is good."""
    form = Form(
        {"model": (1, lambda _: MODEL), "data": (MAX_DATA_FILES, lambda name: name)}, ("metadata",), _check_form
    )
    upload = await receive_upload(request, state.platform, form)
    files = [file for part in upload.files.values() for file, _ in part]
    metadata = _metadata(upload.fields)
    body = {"files": [(file.path, file.sha256) for file in files], "metadata": metadata.model_dump()}
    job = await import_model(state.platform, only_once(caller, key, request, body), model, files, metadata)
    response.headers["location"] = f"/api/v1/jobs/{job.id}"
    return JobOut.of(job)


def _check_form(fields: dict[str, str], files: dict[str, list[str]]) -> None:
    """Refuse a form before its files are kept."""
    _metadata(fields)
    for name in files["data"]:
        if not EXTERNAL.fullmatch(name) or name in NAMES:
            msg = (
                f"'{name}' cannot be the name of an external data file: letters, digits, '.', '_', '-' and blanks, "
                f"and not {', '.join(sorted(NAMES))}"
            )
            raise InvalidInput.at("data", msg=msg, type="name")
    if len(set(files["data"])) != len(files["data"]):
        raise InvalidInput.at("data", msg="two files have the same name; the model could not tell them apart")


def _metadata(fields: dict[str, str]) -> ImportMetadata:
    try:
        return ImportMetadata.model_validate_json(fields.get("metadata", "{}"))
    except ValidationError as error:
        found = [field_error({**e, "loc": ("metadata", *e["loc"])}) for e in error.errors(include_url=False)]
        where = ".".join(map(str, found[0].loc))
        raise InvalidInput(f"{where}: {found[0].msg}", errors=found) from None


@router.get("/models/{model}/versions/{version}", operation_id="model_versions_get", responses=responses(404))
async def get_version(model: str, version: VersionPath, state: GatewayDep, _: Reader) -> ModelVersionOut:
    """One version: metrics, signature, lineage, variants."""
    return ModelVersionOut.of(await _version(state, model, version))


@router.get("/models/{model}/versions/{version}/files", operation_id="model_files_list", responses=responses(404))
async def list_files(model: str, version: VersionPath, state: GatewayDep, _: Reader) -> PageOf[FileOut]:
    """The files of a version."""
    return PageOf(items=[FileOut.of(file) for file in (await _version(state, model, version)).files])


@router.get(
    "/models/{model}/versions/{version}/files/{path:path}",
    operation_id="model_files_get",
    response_class=StreamingResponse,
    responses=responses(404),
)
async def get_file(
    model: str, version: VersionPath, path: str, request: Request, state: GatewayDep, _: Reader
) -> Response:
    """One file; range requests work. The card's page and the plots are shown by a browser, others are downloaded."""
    found = await _version(state, model, version)
    file = next((f for f in found.files if f.path == path), None)
    if file is None:
        raise NotFound(f"'{model}@{version}' has no file '{path}'")
    return await download(request, state.platform, file, path.rsplit("/", 1)[-1], shown_as(path))


@router.get("/models/{model}/versions/{version}/card", operation_id="model_card_get", responses=responses(404))
async def card(model: str, version: VersionPath, state: GatewayDep, _: Reader) -> dict[str, Any]:
    """The model card: data, split, settings, metrics, warnings."""
    found = await _version(state, model, version)
    file = next((f for f in found.files if f.path == CARD), None)
    if file is None:
        raise NotFound(f"'{model}@{version}' has no card")
    return await read_json(state.platform, file)


@router.post(
    "/models/{model}/versions/{version}/reproduce",
    status_code=202,
    operation_id="model_versions_reproduce",
    responses=responses(404, 409),
)
async def reproduce(
    model: str, version: VersionPath, request: Request, response: Response, state: GatewayDep, caller: Trainer,
    key: IdempotencyKey,
) -> JobOut:  # fmt: skip
    """Train a version anew, in a job whose result says how like it the new model is; no version is made."""
    found = await _version(state, model, version)
    async with state.platform.database.read() as session:
        trained = (await JobReader(session).get(str(found.lineage["job"]))).spec
    limits = {name: trained[name] for name in ("resources", "timeout_s") if name in trained}
    spec = ReproduceSpec.model_validate({"kind": "reproduce", "model": model, "version": version, **limits})
    job = await submit_job(state.platform, only_once(caller, key, request, {"version": version}), spec)
    response.headers["location"] = f"/api/v1/jobs/{job.id}"
    return JobOut.of(job)


@router.delete(
    "/models/{model}/versions/{version}",
    status_code=204,
    operation_id="model_versions_delete",
    responses=responses(404, 409),
)
async def delete(model: str, version: VersionPath, state: GatewayDep, _: Trainer) -> None:
    """Delete a version; 409 while an endpoint routes to it or an alias points at it."""
    async with state.platform.database.write() as session:
        await ModelWriter(session).delete(model, version)


@router.put(
    "/models/{model}/aliases/{alias}",
    operation_id="aliases_put",
    responses={
        **responses(404, 409),
        202: {"model": AliasOut, "description": "Moved; a gateway process still serves the version before"},
    },
)
async def move_alias(
    model: str, alias: Name, body: AliasIn, response: Response, state: GatewayDep, caller: Trainer
) -> AliasOut:
    """Point an alias at a version, atomically. Endpoints that route by it serve the version first, or nothing moves."""
    with about("version"):
        moved = None
        while moved is None:
            routed = await state.loader.follow_alias(model, alias, body.version)
            async with state.platform.database.write() as session:
                models = ModelWriter(session)
                await models.hold(model, body.version)  # as whoever routes by the alias does
                late = await EndpointReader(session).routed_by(model, alias)
                # None was routed by it since they were looked at.
                if all(endpoint.version == body.version for endpoint in late):
                    moved = await models.move_alias(model, alias, body.version, by=caller.name, reason=body.reason)
    if not all(standing.applied for standing in await state.loader.standings.settled(routed)):
        response.status_code = HTTPStatus.ACCEPTED
    return AliasOut.of(moved)


@router.delete(
    "/models/{model}/aliases/{alias}", status_code=204, operation_id="aliases_delete", responses=responses(404, 409)
)
async def remove_alias(model: str, alias: str, state: GatewayDep, caller: Trainer) -> None:
    """Remove an alias; its history stays. 409 while an endpoint routes by it."""
    async with state.platform.database.write() as session:
        await ModelWriter(session).remove_alias(model, alias, by=caller.name, reason="")


@router.get("/models/{model}/aliases/{alias}/history", operation_id="aliases_history", responses=responses(404))
async def alias_history(model: str, alias: str, state: GatewayDep, _: Reader) -> PageOf[AliasOut]:
    """Every move of an alias, newest first."""
    async with state.platform.database.read() as session:
        return PageOf(items=[AliasOut.of(move) for move in await ModelReader(session).alias_history(model, alias)])


@router.get("/compare", operation_id="models_compare", responses=responses(404))
async def compare(
    state: GatewayDep,
    _: Reader,
    versions: Annotated[str, Query(max_length=2000, description="m@1,m@2", examples=["churn@1,churn@2"])],
) -> ComparisonOut:
    """Versions side by side: metrics, sizes, latency, settings."""
    rows: list[ComparisonRow] = []
    for ref in versions.split(","):
        try:
            model, number = parse_dataset(ref.strip())
        except ValueError:
            raise InvalidInput.at("versions", msg=f"'{ref}' is not of the form model@version") from None
        found = ModelVersionOut.of(await _version(state, model, number))
        async with state.platform.database.read() as session:
            job = await JobReader(session).get(str(found.lineage["job"]))
        rows.append(
            ComparisonRow(
                model=model,
                version=number,
                family=found.family,
                metrics=found.metrics,
                variants=found.variants,
                settings={key: job.spec.get(key) for key in ("dataset", "params", "features", "split", "training")},
            )
        )
    return ComparisonOut(items=rows)
