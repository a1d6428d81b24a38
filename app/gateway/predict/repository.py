"""The model repository extension: which models there are, and loading and unloading them."""

from typing import Any

import msgspec
import orjson

from app.core.errors import Malformed, NotBuilt, NotFound
from app.gateway.predict.exchange import JSON, Exchange, MethodNotAllowed
from app.gateway.predict.ports import Listed, Repository


class _Index(msgspec.Struct):
    """Body of an index request."""

    ready: bool = False


class _Change(msgspec.Struct):
    """Body of a load or unload request."""

    parameters: dict[str, Any] = {}


class RepositoryApi:
    """Answers everything under /v2/repository."""

    def __init__(self, repository: Repository, max_body: int) -> None:
        self._repository = repository
        self._max_body = max_body

    async def answer(self, exchange: Exchange, rest: list[str]) -> None:
        """Answer one request; errors of the tree are the dispatcher's to answer."""
        match rest:
            case ["index"]:
                await self._index(exchange)
            case ["models", name, "load" | "unload" as verb] if name:
                asked = await self._read(exchange, _Change)
                if unknown := [key for key in asked.parameters if key != "unload_dependents"]:
                    raise NotBuilt(
                        f"the parameter '{unknown[0]}' is not in this release: models come from the registry"
                    )
                await (self._repository.load(name) if verb == "load" else self._repository.unload(name))
                await exchange.answer(200, b"{}", [JSON])
            case _:
                raise NotFound("Not Found")

    async def _index(self, exchange: Exchange) -> None:
        only_ready = (await self._read(exchange, _Index)).ready
        listed = [_entry(item) for item in await self._repository.index() if item.state == "READY" or not only_ready]
        await exchange.answer(200, orjson.dumps(listed), [JSON])

    async def _read(self, exchange: Exchange, form: type[Any]) -> Any:  # noqa: ANN401 - one of the two forms
        """The body, which may be empty."""
        if exchange.method != "POST":
            raise MethodNotAllowed("POST")
        body = await exchange.body(self._max_body)
        try:
            return msgspec.json.decode(body, type=form) if body.strip() else form()
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Malformed(f"the request is malformed: {error}") from None


def _entry(item: Listed) -> dict[str, str]:
    entry = {"name": item.name, "version": item.version, "state": item.state}
    return entry | ({"reason": item.reason} if item.reason else {})
