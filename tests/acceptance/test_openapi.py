"""The OpenAPI document: valid, complete, and true."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.acceptance.conftest import Trained

# What stands in for a path parameter; nothing of that name exists.
PARAMETERS = {"version": "1", "path": "model.onnx"}
OIP = "InferError"
NOUN_VERB = re.compile(r"[a-z]+(_[a-z]+)*_[a-z]+")


@pytest.fixture(scope="module")
def document(trained: Trained) -> dict[str, Any]:
    """What everybody may see."""
    found: dict[str, Any] = httpx.get(f"{trained.platform.url}/openapi.json").raise_for_status().json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for verb, operation in item.items():
            yield path, verb, operation


def resolve(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The schema as a document of its own."""
    return {**schema, "components": document["components"]}


def test_it_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(document).validate()


def test_every_operation_has_a_unique_id_of_noun_and_verb(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(ids) == len(set(ids))
    assert [name for name in ids if not NOUN_VERB.fullmatch(name)] == []
    assert {"jobs_create", "datasets_create", "endpoints_put", "endpoints_predict", "oip_infer"} <= set(ids)


def test_every_operation_is_described(document: dict[str, Any]) -> None:
    bare = [
        operation["operationId"]
        for _, _, operation in operations(document)
        if not operation.get("summary") or not operation.get("tags")
    ]
    assert bare == []
    assert [
        operation["operationId"]
        for path, _, operation in operations(document)
        if path.startswith("/api/") and not operation.get("description")
    ] == []


def test_every_path_answers(trained: Trained, document: dict[str, Any]) -> None:
    """Of an unknown path it would be said that there is nothing at it."""
    for path, verb, operation in operations(document):
        if path.endswith("/events"):
            continue  # the same as the others, but a stream
        url = re.sub(r"{(\w+)}", lambda match: PARAMETERS.get(match[1], "nobody"), path)
        answer = trained.platform.client.request(verb, url)
        assert "there is nothing at" not in answer.text, url
        assert answer.status_code != 405, url
        assert answer.status_code < 500 or answer.status_code == 503, (url, answer.text)
        documented = set(operation["responses"]) | {"401", "403"}
        assert str(answer.status_code) in documented, (verb, url, answer.status_code, sorted(documented))


def test_every_refusal_has_the_documented_form(document: dict[str, Any]) -> None:
    for path, _, operation in operations(document):
        refusals = {status: r for status, r in operation["responses"].items() if int(status) >= 400}
        if path.startswith("/api/"):
            assert {"401", "403"} <= set(refusals), path
        for status, response in refusals.items():
            if path == "/readyz":
                continue  # says what is not ready
            content = response["content"]
            kind, name = (
                ("application/json", OIP)
                if path.startswith(("/v1/", "/v2"))
                else ("application/problem+json", "Problem")
            )
            assert list(content) == [kind], (path, status)
            assert content[kind]["schema"] == {"$ref": f"#/components/schemas/{name}"}, (path, status)
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_everything_but_the_probes_needs_a_key(document: dict[str, Any]) -> None:
    open_paths = {path for path, _, operation in operations(document) if not operation.get("security")}
    assert open_paths == {"/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"}


def examples(content: dict[str, Any]) -> list[Any]:
    found = [content["example"]] if "example" in content else []
    return found + [example["value"] for example in content.get("examples", {}).values()]


def test_every_example_fits_its_schema(document: dict[str, Any]) -> None:
    checked = set()
    for _, _, operation in operations(document):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            for example in examples(content):
                jsonschema.validate(example, resolve(document, content["schema"]), jsonschema.Draft202012Validator)
                checked.add(operation["operationId"])
    assert {"jobs_create", "endpoints_put", "endpoints_predict", "oip_infer"} <= checked


def test_answers_fit_their_schemas(trained: Trained, document: dict[str, Any]) -> None:
    job = trained.jobs["gbdt"]["id"]
    urls = {
        "/api/v1/jobs": "/api/v1/jobs",
        "/api/v1/jobs/{job_id}": f"/api/v1/jobs/{job}",
        "/api/v1/jobs/{job_id}/logs": f"/api/v1/jobs/{job}/logs",
        "/api/v1/jobs/{job_id}/metrics": f"/api/v1/jobs/{job}/metrics",
        "/api/v1/datasets": "/api/v1/datasets",
        "/api/v1/datasets/{name}": "/api/v1/datasets/tumours",
        "/api/v1/datasets/{name}/versions/{version}": "/api/v1/datasets/digits/versions/1",
        "/api/v1/models": "/api/v1/models",
        "/api/v1/models/{model}/versions": "/api/v1/models/gbdt/versions",
        "/api/v1/models/{model}/versions/{version}": "/api/v1/models/cnn/versions/1",
        "/api/v1/endpoints": "/api/v1/endpoints",
        "/api/v1/endpoints/{name}/stats": "/api/v1/endpoints/gbdt/stats",
        "/api/v1/families": "/api/v1/families",
        "/api/v1/workers": "/api/v1/workers",
        "/api/v1/keys": "/api/v1/keys",
        "/v2/models/{name}": "/v2/models/gbdt",
    }
    for path, url in urls.items():
        schema = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        answer = trained.platform.call("GET", url, 200)
        jsonschema.validate(answer, resolve(document, schema), jsonschema.Draft202012Validator)
        assert answer.get("items") != [], url


@pytest.fixture(scope="module")
def known(trained: Trained) -> dict[str, Any]:
    """What a key sees: the models' own operations too."""
    found: dict[str, Any] = trained.platform.call("GET", "/openapi.json", 200)
    return found


def test_columns_and_rows_of_models_need_a_key(trained: Trained, document: dict[str, Any]) -> None:
    assert "/api/v1/endpoints/gbdt/predict" not in document["paths"]
    assert "mean radius" not in str(document)
    url = f"{trained.platform.url}/openapi.json"
    assert httpx.get(url, headers={"x-api-key": "wrong"}).status_code == 401
    only_predict = trained.platform.call("POST", "/api/v1/keys", json={"name": "p", "scopes": ["predict"]})["secret"]
    assert httpx.get(url, headers={"x-api-key": only_predict}).status_code == 403


def test_every_model_has_an_operation_whose_example_can_be_sent(trained: Trained, known: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(known).validate()
    endpoints = [item["name"] for item in trained.platform.call("GET", "/api/v1/endpoints")["items"]]
    assert {"gbdt", "cnn", "linear"} <= set(endpoints)
    for name in endpoints:
        path = f"/api/v1/endpoints/{name}/predict"
        operation = known["paths"][path]["post"]
        assert operation["operationId"] == f"endpoints_predict_{name}"
        content = operation["requestBody"]["content"]["application/json"]
        jsonschema.validate(content["example"], content["schema"], jsonschema.Draft202012Validator)
        answer = trained.platform.call("POST", path, 200, json=content["example"])
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        jsonschema.validate(answer, schema, jsonschema.Draft202012Validator)


def test_a_models_schema_names_its_columns_and_classes(trained: Trained, known: dict[str, Any]) -> None:
    operation = known["paths"]["/api/v1/endpoints/gbdt/predict"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    row = schema["properties"]["instances"]["items"]
    columns = {column["name"]: column for column in trained.version("gbdt")["signature"]["columns"]}
    assert set(row["properties"]) == set(row["required"]) == set(columns)
    assert row["properties"]["mean radius"]["type"] == "number"
    answered = operation["responses"]["200"]["content"]["application/json"]["schema"]
    label = answered["properties"]["predictions"]["items"]["properties"]["label"]
    assert sorted(label["enum"]) == ["benign", "malignant"]
