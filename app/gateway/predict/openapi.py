"""The OpenAPI entries of the paths that the dispatcher answers in front of FastAPI."""

from http import HTTPStatus
from typing import Any

from app.gateway.errors import PROBLEM_TYPE

Json = dict[str, Any]
_TAG = "predictions"
_SECURITY: list[dict[str, list[str]]] = [
    {"HTTPBearer": []},
    {"APIKeyHeader": []},
]  # the names that FastAPI gives the same schemes
_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}, "description": "of the endpoint"}
_VERSION = {
    "name": "version",
    "in": "path",
    "required": True,
    "schema": {"type": "string"},
    "description": "of the model",
}
_HEADERS = [
    {
        "name": "X-Request-Id",
        "in": "header",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:/+=-]{1,128}$"},
        "description": "taken if given, made if not, and returned",
    },
    {
        "name": "traceparent",
        "in": "header",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"},
        "description": "W3C trace context; a valid one is continued: the answer names the trace with a span of its own",
    },
    {
        "name": "X-Request-Timeout-Ms",
        "in": "header",
        "schema": {"type": "integer", "minimum": 1},
        "description": "the caller waits no longer; then the answer is 504 and the work is not done",
    },
    {
        "name": "X-Server-Timing",
        "in": "header",
        "schema": {"type": "string", "enum": ["1"]},
        "description": "ask for a Server-Timing header: parse, queue, batch, compute, encode in ms",
    },
]
_BINARY_HEADER = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "schema": {"type": "integer", "minimum": 0},
    "description": "bytes of the JSON header when binary tensors follow it; 0: the body is one raw tensor",
}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: Json, required: list[str], **more: Any) -> Json:  # noqa: ANN401 - JSON schema
    return {"type": "object", "properties": properties, "required": required, **more}


_TENSOR_FIELDS: Json = {
    "name": {"type": "string"},
    "datatype": {"type": "string", "enum": ["BOOL", "UINT8", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"]},
    "shape": {"type": "array", "items": {"type": "integer"}},
}
_PARAMETERS: Json = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
_DATA: Json = {"type": "array", "items": {}, "description": "row-major, flat or nested; null is NaN; absent if binary"}

SCHEMAS: dict[str, Json] = {
    "PredictRequest": _object(
        {
            "instances": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "anyOf": [
                        {
                            "type": "object",
                            "description": "a value for each column of the model; null if it is missing",
                        },
                        {"type": "string", "description": "a base64 picture, for an image model"},
                        {
                            "type": "array",
                            "description": "pixels 0-255, [H][W] or [C][H][W], for an image model",
                            "items": {},
                        },
                    ]
                },
            }
        },
        ["instances"],
        additionalProperties=False,
    ),
    "Classification": _object(
        {
            "label": {"type": "string", "description": "the most probable class"},
            "probabilities": {"type": "object", "additionalProperties": {"type": ["number", "null"]}},
        },
        ["label", "probabilities"],
    ),
    "Regression": _object({"value": {"type": ["number", "null"]}}, ["value"]),
    "PredictResponse": _object(
        {
            "predictions": {"type": "array", "items": {"anyOf": [_ref("Classification"), _ref("Regression")]}},
            "model": {"type": "string"},
            "version": {"type": "integer"},
            "variant": {"type": "string"},
            "request_id": {"type": "string"},
        },
        ["predictions", "model", "version", "variant", "request_id"],
    ),
    "InferRequest": _object(
        {
            "id": {"type": "string"},
            "parameters": _PARAMETERS,
            "inputs": {
                "type": "array",
                "minItems": 1,
                "items": _object(
                    _TENSOR_FIELDS | {"parameters": _PARAMETERS, "data": _DATA}, ["name", "datatype", "shape"]
                ),
            },
            "outputs": {
                "type": "array",
                "items": _object({"name": {"type": "string"}, "parameters": _PARAMETERS}, ["name"]),
            },
        },
        ["inputs"],
    ),
    "InferResponse": _object(
        {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {
                "type": "array",
                "items": _object(
                    _TENSOR_FIELDS | {"parameters": _PARAMETERS, "data": _DATA}, ["name", "datatype", "shape"]
                ),
            },
        },
        ["model_name", "model_version", "outputs"],
    ),
    "ModelMetadata": _object(
        {
            "name": {"type": "string"},
            "versions": {"type": "array", "items": {"type": "string"}},
            "platform": {"type": "string"},
            "inputs": {"type": "array", "items": _object(_TENSOR_FIELDS, ["name", "datatype", "shape"])},
            "outputs": {"type": "array", "items": _object(_TENSOR_FIELDS, ["name", "datatype", "shape"])},
        },
        ["name", "platform", "inputs", "outputs"],
    ),
    "ServerMetadata": _object(
        {
            "name": {"type": "string"},
            "version": {"type": "string"},
            "extensions": {"type": "array", "items": {"type": "string"}},
        },
        ["name", "version", "extensions"],
    ),
    "ModelReady": _object({"name": {"type": "string"}, "ready": {"type": "boolean"}}, ["name", "ready"]),
    "ServerLive": _object({"live": {"type": "boolean"}}, ["live"]),
    "ServerReady": _object({"ready": {"type": "boolean"}}, ["ready"]),
    "InferError": _object({"error": {"type": "string"}}, ["error"]),
}
_PREDICT_EXAMPLES = {
    "row": {"value": {"instances": [{"age": 41, "contract": "monthly", "charges": None}]}},
    "picture": {
        "value": {
            "instances": [
                "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
            ]
        }
    },
}
_INFER_EXAMPLE = {"inputs": [{"name": "numeric", "datatype": "FP32", "shape": [1, 2], "data": [41, 0.5]}]}


def document(openapi: Json) -> Json:
    """Add the prediction paths and their schemas to FastAPI's document, in place; returns it."""
    components = openapi.setdefault("components", {})
    components.setdefault("schemas", {}).update(SCHEMAS)
    paths = openapi.setdefault("paths", {})
    for path, verb, operation in _operations():
        paths.setdefault(path, {})[verb] = operation
    return openapi


def _operations() -> list[tuple[str, str, Json]]:
    rows = [("/api/v1/endpoints/{name}/predict", "post", _predict())]
    for suffix, kind, parameters in (("", "", [_NAME]), ("/versions/{version}", "_version", [_NAME, _VERSION])):
        model = f"/v2/models/{{name}}{suffix}"
        rows += [
            (
                model,
                "get",
                _read(f"oip_model{kind}_metadata", "The tensors of a model", "ModelMetadata", parameters, 404),
            ),
            (
                f"{model}/ready",
                "get",
                _read(f"oip_model{kind}_ready", "Whether it answers", "ModelReady", parameters, 404),
            ),
            (f"{model}/infer", "post", _infer(f"oip{kind}_infer", parameters)),
        ]
    rows += [
        ("/v2", "get", _read("oip_server_metadata", "The server and its extensions", "ServerMetadata", [])),
        ("/v2/health/live", "get", _probe("oip_live", "Whether the process answers", "ServerLive")),
        ("/v2/health/ready", "get", _probe("oip_ready", "Whether any model answers", "ServerReady")),
    ]
    return rows


def _content(schema: str, kind: str = "application/json", **more: Any) -> Json:  # noqa: ANN401 - OpenAPI
    return {kind: {"schema": _ref(schema), **more}}


def _answer(status: int, content: Json, headers: Json | None = None) -> Json:
    return {"description": HTTPStatus(status).phrase, "content": content, **({"headers": headers} if headers else {})}


def _errors(schema: str, kind: str, *statuses: int) -> Json:
    retry = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    return {str(s): _answer(s, _content(schema, kind), retry if s in {429, 503} else None) for s in statuses}


def _predict() -> Json:
    return {
        "operationId": "endpoints_predict",
        "tags": [_TAG],
        "summary": "Predict",
        "description": "Named values in, one prediction per instance out, in order. Needs the scope `predict`.",
        "security": _SECURITY,
        "parameters": [_NAME, *_HEADERS],
        "requestBody": {"required": True, "content": _content("PredictRequest", examples=_PREDICT_EXAMPLES)},
        "responses": {
            "200": _answer(200, _content("PredictResponse")),
            **_errors("Problem", PROBLEM_TYPE, 400, 401, 403, 404, 405, 413, 422, 429, 500, 503, 504),
        },
    }


def _infer(operation: str, parameters: list[Json]) -> Json:
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    return {
        "operationId": operation,
        "tags": [_TAG],
        "summary": "Infer (Open Inference Protocol v2)",
        "description": "Tensors in, tensors out, as JSON or binary tensor data. Needs the scope `predict`.",
        "security": _SECURITY,
        "parameters": [*parameters, _BINARY_HEADER, *_HEADERS],
        "requestBody": {"required": True, "content": _content("InferRequest", example=_INFER_EXAMPLE) | binary},
        "responses": {
            "200": _answer(200, _content("InferResponse") | binary),
            **_errors("InferError", "application/json", 400, 401, 403, 404, 405, 413, 429, 500, 501, 503, 504),
        },
    }


def _read(operation: str, summary: str, schema: str, parameters: list[Json], *more: int) -> Json:
    return {
        "operationId": operation,
        "tags": [_TAG],
        "summary": f"{summary} (Open Inference Protocol v2)",
        "security": _SECURITY,
        "parameters": parameters,
        "responses": {
            "200": _answer(200, _content(schema)),
            **_errors("InferError", "application/json", 401, 403, *more, 503),
        },
    }


def _probe(operation: str, summary: str, schema: str) -> Json:
    return {
        "operationId": operation,
        "tags": [_TAG],
        "summary": f"{summary} (Open Inference Protocol v2)",
        "security": [],
        "responses": {
            "200": _answer(200, _content(schema)),
            **_errors("InferError", "application/json", 503),
        },
    }
