"""An alias that moves while an endpoint is being routed by it, on a real registry."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Response

from app.core.errors import NotFound
from app.core.resources import Endpoint, ModelVersion
from app.gateway.loading import Loader
from app.gateway.models.endpoints import move_alias
from app.gateway.models.schemas import AliasIn
from app.registry.endpoints import EndpointReader, EndpointWriter
from app.registry.models import ModelReader, ModelWriter
from app.services.platform import Platform
from app.specs.endpoints import EndpointSpec, RouteSpec

SPEC = EndpointSpec(model="m", routes=[RouteSpec(alias="prod")])


async def make_version(platform: Platform) -> ModelVersion:
    result = {"task": "regression", "family": "gbdt", "main_metric": "rmse", "metrics": {}, "signature": {}}
    async with platform.database.write() as session:
        return await ModelWriter(session).create_version(
            "m",
            result | {"schema": {}, "variants": []},
            lineage={},
            digest="f" * 64,
            files=[],
            dataset_version_id=None,
            job_id=None,
        )


async def point(platform: Platform, version: int) -> None:
    async with platform.database.write() as session:
        await ModelWriter(session).move_alias("m", "prod", version, by="ann", reason="")


async def route(platform: Platform, version: int) -> Endpoint:
    async with platform.database.write() as session:
        return (await EndpointWriter(session).put("e", "m", version, "fp32", SPEC.model_dump(mode="json")))[0]


async def served(platform: Platform) -> int:
    async with platform.database.read() as session:
        return (await EndpointReader(session).get("e")).version


class Processes:
    """This one alone."""

    async def report(self, *_: object) -> None:
        pass

    async def others(self, _names: Sequence[str]) -> list[Any]:
        return []


def loader_of(platform: Platform) -> tuple[Loader, list[int], list[int]]:
    """A loader, and the versions that it has let go of and put into service."""
    let_go, in_service = list[int](), list[int]()

    async def swap(loaded: int) -> None:
        in_service.append(loaded)

    host: Any = SimpleNamespace(discard=let_go.append, swap=swap, expect=lambda _: None, outages=dict)
    processes: Any = Processes()
    return Loader(platform, host, processes), let_go, in_service


@pytest.mark.parametrize("change", ["put", "load"])
async def test_an_alias_that_moves_while_its_version_is_loaded_is_followed(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    first, second = await make_version(platform), await make_version(platform)
    await point(platform, first.version)
    loader, let_go, in_service = loader_of(platform)

    async def load(_name: str, version: ModelVersion, *_: object) -> tuple[int, str]:
        if version.version == first.version:
            await point(platform, second.version)  # another gateway, which finds no endpoint that goes by it
        return version.version, "fp32"

    monkeypatch.setattr(loader, "_load", load)
    if change == "load":
        await route(platform, first.version)
        await loader.load("e")
    else:
        assert (await loader.put("e", first, None, SPEC)).endpoint.version == second.version
    assert await served(platform) == second.version
    assert (let_go, in_service) == ([1], [2])


@pytest.mark.parametrize("change", ["load", "follow_alias"])
@pytest.mark.parametrize("to", ["another version", "nothing"])
async def test_what_another_makes_of_an_endpoint_while_it_is_loaded_is_not_undone(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, change: str, to: str
) -> None:
    first, second = await make_version(platform), await make_version(platform)
    await point(platform, first.version)
    await route(platform, first.version)
    fixed = EndpointSpec(model="m", routes=[RouteSpec(version=second.version)]).model_dump(mode="json")
    loader, let_go, in_service = loader_of(platform)

    async def load(_name: str, version: ModelVersion, *_: object) -> tuple[int, str]:
        if not let_go:  # another gateway, or a job that deploys what it has made
            async with platform.database.write() as session:
                endpoints = EndpointWriter(session)
                if to == "nothing":
                    await endpoints.delete("e")
                else:
                    await endpoints.put("e", "m", second.version, "fp32", fixed)
        return version.version, "fp32"

    monkeypatch.setattr(loader, "_load", load)
    if change == "follow_alias":
        assert await loader.follow_alias("m", "prod", first.version) == []
    elif to == "nothing":
        with pytest.raises(NotFound):
            await loader.load("e")
    else:
        await loader.load("e")
    async with platform.database.read() as session:
        left = [(endpoint.version, endpoint.spec) for endpoint in await EndpointReader(session).all()]
    assert left == ([] if to == "nothing" else [(second.version, fixed)])
    reloaded = change == "load" and to != "nothing"
    assert (let_go, in_service) == ([first.version], [second.version] if reloaded else [])


async def test_an_endpoint_that_is_routed_just_before_the_alias_moves_follows_it(platform: Platform) -> None:
    first, second = await make_version(platform), await make_version(platform)
    await point(platform, first.version)
    looked = 0

    async def follow_alias(_model: str, _alias: str, version: int) -> list[Endpoint]:
        nonlocal looked
        looked += 1
        if looked == 1:  # another gateway routes it after this one has looked
            await route(platform, first.version)
            return []
        return [await route(platform, version)]

    async def settled(_endpoints: Sequence[Endpoint]) -> list[Any]:
        return []

    loader = SimpleNamespace(follow_alias=follow_alias, standings=SimpleNamespace(settled=settled))
    state: Any = SimpleNamespace(platform=platform, loader=loader)
    caller: Any = SimpleNamespace(name="ann")
    await move_alias("m", "prod", AliasIn(version=second.version), Response(), state, caller)
    async with platform.database.read() as session:
        assert await ModelReader(session).resolve_alias("m", "prod") == second.version
    assert (await served(platform), looked) == (second.version, 2)
