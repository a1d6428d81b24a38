"""Parts of the contract that this release does not have: each answers 501 and says so, rather than 404."""

from fastapi import APIRouter, Request

from app.core.errors import NotBuilt
from app.gateway.deps import Reader

router = APIRouter(include_in_schema=False)
# (methods, path, what it would be)
PARTS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("GET", "POST", "PATCH", "DELETE", "HEAD", "OPTIONS"), "/api/v1/uploads{rest:path}", "resumable uploads (tus)"),
    (("POST",), "/api/v1/endpoints/{name}/promote", "promotion of a canary"),
    (("POST",), "/api/v1/endpoints/{name}/rollback", "rollback"),
    (("POST",), "/api/v1/endpoints/{name}/explain", "explanations"),
    (("GET", "POST", "PATCH", "PUT", "DELETE"), "/api/v1/projects{rest:path}", "projects"),
    (("GET",), "/api/v1/audit{rest:path}", "the audit trail"),
    (("GET", "POST"), "/api/v1/gc", "garbage collection on request (unused files are removed by themselves)"),
    (("GET", "POST", "PATCH", "PUT", "DELETE"), "/api/v1/webhooks{rest:path}", "webhooks"),
    (("GET", "POST"), "/openai/v1/{rest:path}", "the OpenAI protocol"),
)


def _add(methods: tuple[str, ...], path: str, what: str) -> None:
    async def answer(_request: Request, _: Reader) -> None:
        raise NotBuilt(f"{what}: not in this release; the README's table says what is")

    router.add_api_route(path, answer, methods=list(methods), name=f"not_built {path}")


for _methods, _path, _what in PARTS:
    _add(_methods, _path, _what)
