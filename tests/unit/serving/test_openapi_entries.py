"""The OpenAPI entries of the paths in front of FastAPI."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from openapi_spec_validator import validate

from app.gateway.predict.openapi import document
from app.gateway.predict.openapi_models import with_models
from app.serving.host import Host, ModelSource
from app.settings import ServingSettings


def test_the_openapi_entries_are_valid_and_complete():
    base = {
        "openapi": "3.1.0",
        "info": {"title": "t", "version": "1"},
        "paths": {},
        "components": {"schemas": {"Problem": {"type": "object"}}},
    }
    openapi = document(base)
    validate(openapi)
    assert {
        (path, verb): op["operationId"] for path, item in openapi["paths"].items() for verb, op in item.items()
    } == {
        ("/api/v1/endpoints/{name}/predict", "post"): "endpoints_predict",
        ("/v2/models/{name}", "get"): "oip_model_metadata",
        ("/v2/models/{name}/ready", "get"): "oip_model_ready",
        ("/v2/models/{name}/infer", "post"): "oip_infer",
        ("/v2/models/{name}/versions/{version}", "get"): "oip_model_version_metadata",
        ("/v2/models/{name}/versions/{version}/ready", "get"): "oip_model_version_ready",
        ("/v2/models/{name}/versions/{version}/infer", "post"): "oip_version_infer",
        ("/v2/models/{name}/config", "get"): "oip_model_config",
        ("/v2/models/{name}/stats", "get"): "oip_model_stats",
        ("/v2/models/{name}/versions/{version}/config", "get"): "oip_model_version_config",
        ("/v2/models/{name}/versions/{version}/stats", "get"): "oip_model_version_stats",
        ("/v2/models/stats", "get"): "oip_stats",
        ("/v2/repository/index", "post"): "oip_repository_index",
        ("/v2/repository/models/{name}/load", "post"): "oip_repository_load",
        ("/v2/repository/models/{name}/unload", "post"): "oip_repository_unload",
        ("/v1/models", "get"): "kserve_models_list",
        ("/v1/models/{name}", "get"): "kserve_model_ready",
        ("/v1/models/{name}:predict", "post"): "kserve_predict",
        ("/v2", "get"): "oip_server_metadata",
        ("/v2/health/live", "get"): "oip_live",
        ("/v2/health/ready", "get"): "oip_ready",
    }


@pytest.mark.parametrize("golden", [None, "{", '{"inputs": {}, "outputs": {}}', "[]", "\udcff"])
async def test_a_model_whose_golden_rows_cannot_be_read_has_an_operation_without_an_example(
    source: Callable[..., ModelSource],
    picture_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    golden: str | None,
):
    host = Host(ServingSettings(threads=1))
    spoiled = Path(shutil.copytree(picture_folder, tmp_path / "spoiled"))
    for folder, name in ((picture_folder, "good"), (spoiled, "spoiled")):
        await host.swap(await host.load(source(folder, endpoint=name)))
    (spoiled / "golden.json").unlink()
    if golden is not None:
        (spoiled / "golden.json").write_text(golden, errors="surrogateescape")
    with caplog.at_level(logging.WARNING):
        paths = with_models({"paths": {"/elsewhere": {}}}, host.described())["paths"]
    await host.close()
    assert set(paths) == {"/elsewhere", "/api/v1/endpoints/good/predict", "/api/v1/endpoints/spoiled/predict"}
    bodies = {
        name: paths[f"/api/v1/endpoints/{name}/predict"]["post"]["requestBody"]["content"]["application/json"]
        for name in ("good", "spoiled")
    }
    assert set(bodies["good"]) == {"schema", "example"}
    assert set(bodies["spoiled"]) == {"schema"}
    [record] = caplog.records
    assert "endpoint=spoiled" in record.getMessage()
    assert "golden.json" in record.getMessage()
