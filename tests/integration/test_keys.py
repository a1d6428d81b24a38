"""The gateway's key cache on a real registry."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event

from app.core.errors import Unauthenticated, Unavailable
from app.gateway import auth
from app.gateway.auth import KeyCache
from app.registry.keys import KeyReader, KeyWriter
from app.registry.session import Database
from app.services.platform import Platform

AWAY = "postgresql://nobody@/nothing?host=/nonexistent"


async def new_key(platform: Platform) -> bytes:
    async with platform.database.write() as session:
        _, secret = await KeyWriter(session).create("k", ["read"])
    return secret.encode()


async def test_requests_that_ask_at_once_share_one_look_up(platform: Platform) -> None:
    key, statements = await new_key(platform), []

    @event.listens_for(platform.database._read.sync_engine, "before_cursor_execute")
    def _count(*arguments: Any) -> None:
        statements.append(arguments[2])

    keys = KeyCache(platform)
    found = await asyncio.gather(*(keys.verify(key) for _ in range(50)))
    assert {principal.name for principal in found} == {"k"}
    assert len([text for text in statements if "api_keys" in text]) == 1
    assert keys.cached(key) == found[0]


async def test_wrong_keys_are_refused_and_not_remembered(platform: Platform) -> None:
    keys = KeyCache(platform)
    with pytest.raises(Unauthenticated):
        await keys.verify(b"wrong")
    assert keys.cached(b"wrong") is None


async def test_good_keys_stay_good_while_the_registry_is_away(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "TTL_S", 0.0)
    key, keys = await new_key(platform), KeyCache(platform)
    await keys.verify(key)
    assert keys.cached(key) is None
    away = Database(AWAY)
    keys._platform = replace(platform, database=away)
    assert (await keys.verify(key)).name == "k"
    with pytest.raises(Unavailable):
        await keys.verify(b"never seen")
    await away.close()


async def test_made_up_keys_do_not_hold_up_a_good_one(platform: Platform, monkeypatch: pytest.MonkeyPatch):
    key, keys = await new_key(platform), KeyCache(platform)
    await keys.verify(key)
    going_on = asyncio.Event()
    find = KeyReader.find

    async def slowly(reader: KeyReader, secret: str) -> Any:
        if secret.startswith("made up"):
            await going_on.wait()
        return await find(reader, secret)

    monkeypatch.setattr(KeyReader, "find", slowly)
    strangers = [asyncio.create_task(keys.verify(b"made up %d" % at)) for at in range(50)]
    await asyncio.sleep(0.05)
    keys.forget()  # another key was revoked, so that each is looked up: there are connections to spare for it
    assert keys.cached(key) is None
    assert (await keys.verify(key)).name == "k"
    going_on.set()
    found = await asyncio.gather(*strangers, return_exceptions=True)
    assert {type(one) for one in found} == {Unauthenticated}


async def test_a_key_in_use_is_looked_up_before_its_time_is_over(platform: Platform, monkeypatch: pytest.MonkeyPatch):
    key, keys = await new_key(platform), KeyCache(platform)
    await keys.verify(key)
    until = keys._known[key][1]
    assert keys.cached(key) is not None
    assert not keys._asking  # it is fresh
    monkeypatch.setattr(auth, "_FRESH", 2.0)
    assert keys.cached(key) is not None
    await asyncio.gather(*keys._asking.values())
    assert keys._known[key][1] > until
    assert not keys._asking
