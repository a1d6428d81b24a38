"""`/api/v1/keys`."""

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from app.core.principal import Scope
from app.core.resources import ApiKey
from app.gateway.deps import Admin, GatewayDep, IdempotencyKey, PageDep, id_cursor, only_once
from app.gateway.errors import responses
from app.gateway.schemas import PageOf, Timestamp
from app.registry.keys import KeyReader, KeyWriter
from app.services.idempotent import create_once
from app.specs.base import NO_NUL, Spec

router = APIRouter(prefix="/api/v1/keys", tags=["administration"])


class KeyIn(Spec):
    """A new key."""

    name: str = Field(min_length=1, max_length=100, pattern=NO_NUL, examples=["ci"])
    scopes: list[Scope] = Field(["read", "predict"], min_length=1)


class KeyOut(BaseModel):
    """A key without its secret."""

    id: str = Field(description="of the key")
    name: str = Field(description="as it was given")
    prefix: str = Field(description="the secret's first characters, to tell keys apart")
    scopes: list[str] = Field(description="what it may do")
    created_at: Timestamp = Field(description="when it was made")
    revoked_at: Timestamp | None = Field(description="when it was revoked; null: it is valid")

    @classmethod
    def of(cls, key: ApiKey) -> "KeyOut":
        """From the registry's object."""
        return cls.model_validate(_fields(key))


class NewKeyOut(KeyOut):
    """A key and its secret, which is shown this once."""

    secret: str | None = Field(description="to be sent with requests; null where the same request is repeated")


def _fields(key: ApiKey) -> dict[str, object]:
    return {
        "id": key.id,
        "name": key.name,
        "prefix": key.prefix,
        "scopes": list(key.scopes),
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
    }


@router.post("", status_code=201, operation_id="keys_create", responses=responses(400, 409))
async def create(
    body: KeyIn, request: Request, response: Response, state: GatewayDep, caller: Admin, idempotency: IdempotencyKey
) -> NewKeyOut:
    """Make a key. Its secret is in this answer and nowhere else: a retry gets the same key with `secret` null."""
    secret: str | None = None
    async with state.platform.database.write() as session:
        keys = KeyWriter(session)

        async def make() -> str:
            nonlocal secret
            made, secret = await keys.create(body.name, body.scopes)
            return made.id

        asked = only_once(caller, idempotency, request, body.model_dump(mode="json"))
        key = await keys.get(await create_once(session, asked, make))
    response.headers["location"] = f"/api/v1/keys/{key.id}"
    response.headers["cache-control"] = "no-store"
    return NewKeyOut.model_validate(_fields(key) | {"secret": secret})


@router.get("", operation_id="keys_list", responses=responses())
async def list_all(state: GatewayDep, _: Admin, page: PageDep) -> PageOf[KeyOut]:
    """Keys, newest first."""
    async with state.platform.database.read() as session:
        found = await KeyReader(session).page(page.limit, id_cursor(page))
    return PageOf(items=[KeyOut.of(key) for key in found.items], next_cursor=found.next_cursor)


@router.delete("/{key_id}", status_code=204, operation_id="keys_revoke", responses=responses(404))
async def revoke(key_id: str, state: GatewayDep, _: Admin) -> None:
    """Refuse the key from now on."""
    async with state.platform.database.write() as session:
        await KeyWriter(session).revoke(key_id)
    state.keys.forget()
