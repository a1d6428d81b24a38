"""`/openapi.json` and `/docs`: the API as a document; who shows a key gets the models' own operations with it."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse

from app.gateway.deps import Bearer, GatewayDep, HeaderKey, principal_of
from app.gateway.predict.openapi_models import with_models

router = APIRouter(include_in_schema=False)


@router.get("/openapi.json")
async def openapi(request: Request, state: GatewayDep, bearer: Bearer, header: HeaderKey) -> JSONResponse:
    """OpenAPI 3.1. Columns and example rows of models are for keys with the scope `read`."""
    found: dict[str, Any] = request.app.openapi()
    if bearer is not None or header:
        (await principal_of(state, bearer, header)).require("read")
        found = await asyncio.to_thread(with_models, found, state.host.described())
    return JSONResponse(found)


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """Swagger UI over the document."""
    return get_swagger_ui_html(openapi_url="/openapi.json", title=request.app.title)
