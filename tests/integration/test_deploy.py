"""What a train job's `deploy` does to an endpoint that is there already, on a real registry."""

from typing import Any

import pytest

from app.core.errors import InvalidSpec
from app.core.resources import ModelVersion, StoredFile
from app.registry.endpoints import EndpointReader, EndpointWriter
from app.registry.models import ModelWriter
from app.registry.session import Database
from app.services import deploy_version as deploying
from app.services.deploy_version import check_deploy, deploy_version
from app.services.platform import Platform


@pytest.fixture
def database(platform: Platform) -> Database:
    return platform.database


def variant(name: str, path: str, items_per_s: float) -> dict[str, Any]:
    return {
        "name": name,
        "state": "accepted",
        "reason": None,
        "recipe": {},
        "path": path,
        "bytes": 5,
        "metrics": {},
        "latency": {"items_per_s": items_per_s},
    }


async def make(database: Database, model: str) -> ModelVersion:
    result = {
        "task": "regression",
        "family": "gbdt",
        "main_metric": "rmse",
        "metrics": {},
        "signature": {},
        "schema": {},
        "variants": [
            variant("fp32", "model.onnx", 100.0),
            variant("optimized", "variants/optimized/model.onnx", 300.0),
        ],
    }
    async with database.write() as session:
        return await ModelWriter(session).create_version(
            model,
            result,
            lineage={},
            digest="f" * 64,
            files=[StoredFile("model.onnx", "c" * 64, 5)],
            dataset_version_id=None,
            job_id=None,
        )


async def deploy(database: Database, endpoint: str, version: ModelVersion) -> dict[str, Any]:
    async with database.write() as session:
        return await deploy_version(session, endpoint, version)


async def test_a_new_endpoint_serves_the_best_variant(database: Database) -> None:
    assert await deploy(database, "e", await make(database, "m")) == {"endpoint": "e"}
    async with database.read() as session:
        found = await EndpointReader(session).get("e")
    assert (found.model, found.version, found.variant) == ("m", 1, "optimized")
    assert found.spec["routes"] == [{"version": 1, "alias": None, "variant": None, "weight": 100}]


async def test_an_endpoint_keeps_its_batching(database: Database) -> None:
    first, second = await make(database, "m"), await make(database, "m")
    await deploy(database, "e", first)
    async with database.write() as session:
        spec = (await EndpointReader(session).get("e")).spec | {"batching": {"max_batch": 7, "max_queue": 9}}
        await EndpointWriter(session).put("e", "m", 1, "fp32", spec)
    await deploy(database, "e", second)
    async with database.read() as session:
        found = await EndpointReader(session).get("e")
    assert found.version == 2
    assert (found.spec["batching"]["max_batch"], found.spec["batching"]["max_queue"]) == (7, 9)


async def test_an_endpoint_of_another_model_is_left_alone(database: Database) -> None:
    await deploy(database, "e", await make(database, "m"))
    async with database.read() as session:
        await check_deploy(session, "m", "e")
        await check_deploy(session, "other", "new")
        with pytest.raises(InvalidSpec, match="serves model 'm'") as refused:
            await check_deploy(session, "other", "e")
    assert refused.value.errors[0].loc == ("deploy", "endpoint")
    result = await deploy(database, "e", await make(database, "other"))
    assert "serves model 'm'" in result["not_deployed"]
    async with database.read() as session:
        assert (await EndpointReader(session).get("e")).model == "m"


async def test_an_endpoint_that_another_model_has_made_in_the_same_moment_is_left_alone(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(database, "e", await make(database, "m"))

    async def not_yet(*_: object) -> None:
        pass

    monkeypatch.setattr(deploying, "_current", not_yet)
    result = await deploy(database, "e", await make(database, "other"))
    assert "serves model 'm'" in result["not_deployed"]
    async with database.read() as session:
        assert (await EndpointReader(session).get("e")).model == "m"


async def test_a_variant_made_again_on_another_host_is_known_on_both(database: Database) -> None:
    """The very same file keeps its name (`beside`); what the first host found of it must not be lost."""
    await make(database, "m")
    here, there = (
        {"host": f"A processor ({isa})", "items_per_s": speed} for isa, speed in (("avx2", 500.0), ("sve", 50.0))
    )
    int8 = variant("int8", "variants/int8/model.onnx", 0.0)

    async def kept(latency: dict[str, Any]) -> ModelVersion:
        async with database.write() as session:
            writer = ModelWriter(session)
            await writer.add_variants("m", 1, [int8 | {"latency": latency}], [])
            return await writer.version("m", 1)

    first = await kept(here)
    assert [one.serves("avx2") for one in first.variants] == [True, True, True]
    assert [one.serves("sve") for one in first.variants] == [True, True, False]
    await kept(there)
    both = await kept(here | {"items_per_s": 400.0})
    found = [both.variants[2].measured(host) for host in ("avx2", "sve", "vnni")]
    assert [one and one.items_per_s for one in found] == [400.0, 50.0, None]
    chosen = [both.variant(None, host) for host in ("avx2", "sve", "vnni")]
    assert [one and one.name for one in chosen] == ["int8", "optimized", "optimized"]
