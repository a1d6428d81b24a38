"""`/api/v1/datasets`."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from pydantic import TypeAdapter, ValidationError

from app.core.errors import InvalidInput, Malformed, NotBuilt, NotFound
from app.core.principal import Principal
from app.core.resources import DatasetVersion
from app.gateway.datasets.schemas import DatasetIn, DatasetOut, DatasetVersionOut
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
from app.gateway.errors import responses
from app.gateway.files import download, read_json
from app.gateway.schemas import PageOf
from app.gateway.upload import Form, receive_upload
from app.registry.datasets import DatasetReader, DatasetWriter
from app.services.upload_dataset import KINDS, ORIGINAL, fetch_dataset, upload_dataset
from app.specs.base import NAME_RULE, Name
from app.specs.data import PROFILE_FILE

router = APIRouter(prefix="/api/v1/datasets", tags=["datasets"])
_NAME: TypeAdapter[str] = TypeAdapter(Name)
LATER_KINDS = ("text", "audio", "series", "ratings", "baskets", "graph")
_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["name", "file"],
                    "properties": {
                        "name": {
                            "type": "string",
                            "description": "an existing name gets the next version",
                            "example": "telco",
                        },
                        "kind": {"type": "string", "enum": list(KINDS), "default": "auto"},
                        "file": {
                            "type": "string",
                            "format": "binary",
                            "description": "CSV, Parquet, Arrow, Excel (xlsx), JSON Lines, zip, tar, idx; gzip too",
                        },
                    },
                }
            },
            "application/json": {"schema": DatasetIn.model_json_schema()},
        },
    }
}


@router.post(
    "",
    status_code=201,
    operation_id="datasets_create",
    responses=responses(400, 409, 413, 501),
    openapi_extra=_FORM,
)
async def create(
    request: Request, response: Response, state: GatewayDep, caller: Trainer, key: IdempotencyKey
) -> DatasetVersionOut:
    """Upload a file, or name its address, as the next version of a data set; a job fetches and parses it."""
    if request.headers.get("content-type", "").startswith("application/json"):
        version = await _from_uri(request, state, caller, key)
        response.headers["location"] = f"/api/v1/datasets/{version.name}/versions/{version.version}"
        return DatasetVersionOut.of(version)
    form = Form({"file": (1, lambda _: ORIGINAL)}, ("name", "kind"), _check_form)
    upload = await receive_upload(request, state.platform, form)
    file, filename = upload.files["file"][0]
    name, kind = upload.fields["name"], upload.fields.get("kind", "auto")
    body = {"name": name, "kind": kind, "sha256": file.sha256, "filename": filename}
    version = await upload_dataset(state.platform, only_once(caller, key, request, body), name, kind, file, filename)
    response.headers["location"] = f"/api/v1/datasets/{name}/versions/{version.version}"
    return DatasetVersionOut.of(version)


async def _from_uri(request: Request, state: Gateway, caller: Principal, key: str | None) -> DatasetVersion:
    """The version whose file a worker fetches from `uri`."""
    try:
        sent = DatasetIn.model_validate(json.loads(await request.body()))
    except ValidationError as error:
        raise RequestValidationError([{**e, "loc": ("body", *e["loc"])} for e in error.errors()]) from None
    except UnicodeDecodeError:
        raise Malformed("the body is not UTF-8") from None
    except RecursionError:
        raise Malformed("the body cannot be read as JSON; it is nested too deeply") from None
    except json.JSONDecodeError as error:
        found = {"type": "json_invalid", "loc": ("body", error.pos), "ctx": {"error": error.msg}}
        raise RequestValidationError([found]) from None
    _check_kind(sent.kind)
    once = only_once(caller, key, request, sent.model_dump())
    return await fetch_dataset(state.platform, once, sent.name, sent.kind, sent.uri)


def _check_kind(kind: str) -> None:
    if kind in LATER_KINDS:
        raise NotBuilt(f"data sets of kind '{kind}' are not in this release; this one has: {', '.join(KINDS)}")
    if kind not in KINDS:
        raise InvalidInput.at("kind", msg=f"must be one of: {', '.join(KINDS)}", type="enum")


def _check_form(fields: dict[str, str], _: dict[str, list[str]]) -> None:
    """Refuse a form before its file is kept."""
    name, kind = fields.get("name", ""), fields.get("kind", "auto")
    _check_kind(kind)
    try:
        _NAME.validate_python(name)
    except ValidationError:
        kind = "string_pattern_mismatch" if name else "missing"
        raise InvalidInput.at("name", msg=NAME_RULE, type=kind) from None


@router.get("", operation_id="datasets_list", responses=responses())
async def list_all(state: GatewayDep, _: Reader, page: PageDep) -> PageOf[DatasetOut]:
    """Data sets by name, each as its newest version."""
    async with state.platform.database.read() as session:
        datasets = DatasetReader(session)
        found = await datasets.page(page.limit, name_cursor(page))
        newest = await datasets.newest([item.name for item in found.items])
    items = [DatasetOut.newest(newest[item.name]) for item in found.items if item.name in newest]
    return PageOf(items=items, next_cursor=found.next_cursor)


@router.get("/{name}", operation_id="datasets_get", responses=responses(404))
async def get(name: str, state: GatewayDep, _: Reader) -> DatasetOut:
    """One data set as its newest version."""
    async with state.platform.database.read() as session:
        datasets = DatasetReader(session)
        latest = (await datasets.get(name)).latest
        return DatasetOut.newest(await datasets.version(name, latest, files=False))


@router.get("/{name}/versions", operation_id="dataset_versions_list", responses=responses(404))
async def list_versions(name: str, state: GatewayDep, _: Reader, page: PageDep) -> PageOf[DatasetVersionOut]:
    """Versions of a data set, newest first."""
    async with state.platform.database.read() as session:
        found = await DatasetReader(session).versions(name, page.limit, number_cursor(page))
    return PageOf(items=[DatasetVersionOut.of(item) for item in found.items], next_cursor=found.next_cursor)


async def _version(state: Gateway, name: str, version: int) -> DatasetVersion:
    async with state.platform.database.read() as session:
        return await DatasetReader(session).version(name, version)


@router.get("/{name}/versions/{version}", operation_id="dataset_versions_get", responses=responses(404))
async def get_version(name: str, version: VersionPath, state: GatewayDep, _: Reader) -> DatasetVersionOut:
    """One version: its state, columns, warnings and unreadable rows."""
    return DatasetVersionOut.of(await _version(state, name, version))


@router.get("/{name}/versions/{version}/profile", operation_id="dataset_versions_profile", responses=responses(404))
async def profile(name: str, version: VersionPath, state: GatewayDep, _: Reader) -> dict[str, Any]:
    """Statistics, histograms and warnings of each column."""
    found = await _version(state, name, version)
    read = await _read_json(state, found, PROFILE_FILE)
    read.pop("preview", None)  # `rows` shows it
    return read


async def _read_json(state: Gateway, version: DatasetVersion, path: str) -> dict[str, Any]:
    file = next((f for f in version.files if f.path == path), None)
    if file is None:
        raise NotFound(f"'{version.name}@{version.version}' is {version.state}; it has no {path}")
    return await read_json(state.platform, file)


@router.get("/{name}/versions/{version}/rows", operation_id="dataset_versions_rows", responses=responses(404))
async def rows(
    name: str,
    version: VersionPath,
    state: GatewayDep,
    _: Reader,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    offset: Annotated[int, Query(ge=0)] = 0,
) -> dict[str, Any]:
    """The first rows as they were parsed; at most 100 are kept for this."""
    found = await _version(state, name, version)
    preview: list[Any] = (await _read_json(state, found, PROFILE_FILE)).get("preview", [])
    return {"items": preview[offset : offset + limit], "total": found.rows, "previewed": len(preview)}


@router.get(
    "/{name}/versions/{version}/original",
    operation_id="dataset_versions_original",
    response_class=StreamingResponse,
    responses=responses(404),
)
async def original(name: str, version: VersionPath, request: Request, state: GatewayDep, _: Reader) -> Response:
    """The upload, byte for byte, with its name; range requests work."""
    found = await _version(state, name, version)
    file = next((f for f in found.files if f.path == ORIGINAL), None)
    if file is None:
        raise NotFound(f"the file of '{name}@{version}' was not fetched: the version is {found.state}")
    return await download(request, state.platform, file, found.filename)


@router.delete(
    "/{name}/versions/{version}", status_code=204, operation_id="dataset_versions_delete", responses=responses(404, 409)
)
async def delete(
    name: str,
    version: VersionPath,
    state: GatewayDep,
    _: Trainer,
    *,
    detach: Annotated[bool, Query(description="delete although models were trained on it")] = False,
) -> None:
    """Delete a version; 409 while a model version was trained on it, unless `detach`."""
    async with state.platform.database.write() as session:
        await DatasetWriter(session).delete(name, version, detach=detach)
