"""The OpenAPI entries of the paths that the dispatcher answers in front of FastAPI."""

from http import HTTPStatus
from typing import Any

from app.gateway.errors import PROBLEM_TYPE
from app.gateway.predict.openapi_schemas import SCHEMAS, Json, ref

_TAG = "predictions"
_V1 = "KServe V1"
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
        "description": "ask for a Server-Timing header: receive, parse, queue, batch, compute, encode in ms",
    },
]
_BINARY_HEADER = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "schema": {"type": "integer", "minimum": 0},
    "description": "bytes of the JSON header when binary tensors follow it; 0: the body is one raw tensor",
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
    rows = [("/api/v1/endpoints/{name}/predict", "post", predict_operation("endpoints_predict"))]
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
            (
                f"{model}/config",
                "get",
                _read(f"oip_model{kind}_config", "Configuration, for load tools", "ModelConfig", parameters, 404),
            ),
            (
                f"{model}/stats",
                "get",
                _read(f"oip_model{kind}_stats", "Statistics of a model", "ModelStatistics", parameters, 404),
            ),
        ]
    rows += [
        ("/v2", "get", _read("oip_server_metadata", "The server and its extensions", "ServerMetadata", [])),
        ("/v2/models/stats", "get", _read("oip_stats", "Statistics of every model", "ModelStatistics", [])),
        ("/v2/repository/index", "post", _read("oip_repository_index", "Every model", "RepositoryIndex", [])),
        ("/v2/repository/models/{name}/load", "post", _change("load", "Load a model that was unloaded, or again")),
        ("/v2/repository/models/{name}/unload", "post", _change("unload", "Free a model's memory")),
        ("/v1/models", "get", _read("kserve_models_list", "Models that are loaded", "KserveModels", [], title=_V1)),
        (
            "/v1/models/{name}",
            "get",
            _read("kserve_model_ready", "Whether it answers", "ModelReady", [_NAME], 404, title=_V1),
        ),
        ("/v1/models/{name}:predict", "post", _v1_predict()),
        ("/v2/health/live", "get", _probe("oip_live", "Whether the process answers", "ServerLive")),
        ("/v2/health/ready", "get", _probe("oip_ready", "Whether any model answers", "ServerReady")),
    ]
    return rows


def _content(schema: str, kind: str = "application/json", **more: Any) -> Json:  # noqa: ANN401 - OpenAPI
    return {kind: {"schema": ref(schema), **more}}


def _answer(status: int, content: Json, headers: Json | None = None) -> Json:
    return {"description": HTTPStatus(status).phrase, "content": content, **({"headers": headers} if headers else {})}


def _errors(schema: str, kind: str, *statuses: int) -> Json:
    retry = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    return {str(s): _answer(s, _content(schema, kind), retry if s in {429, 503} else None) for s in statuses}


def predict_operation(operation: str, *, named: bool = True) -> Json:
    """Prediction by named values; `named`: the endpoint is a parameter of the path."""
    return {
        "operationId": operation,
        "tags": [_TAG],
        "summary": "Predict",
        "description": "Named values in, one prediction per instance out, in order. Needs the scope `predict`.",
        "security": _SECURITY,
        "parameters": [_NAME, *_HEADERS] if named else [*_HEADERS],
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


def _v1_predict() -> Json:
    return {
        "operationId": "kserve_predict",
        "tags": [_TAG],
        "summary": f"Predict ({_V1})",
        "description": "The same instances and predictions as `endpoints_predict`, but that a model without columns "
        "does not name its only output, as TensorFlow Serving's do not. Needs the scope `predict`.",
        "security": _SECURITY,
        "parameters": [_NAME, *_HEADERS],
        "requestBody": {"required": True, "content": _content("PredictRequest", examples=_PREDICT_EXAMPLES)},
        "responses": {
            "200": _answer(200, _content("KservePredictions")),
            **_errors("InferError", "application/json", 400, 401, 403, 404, 405, 413, 429, 500, 503, 504),
        },
    }


def _change(verb: str, summary: str) -> Json:
    operation = _read(f"oip_repository_{verb}", summary, "ServerLive", [_NAME], 404, 409)
    answer = {"description": "done, in every gateway", "content": {"application/json": {"schema": {"type": "object"}}}}
    return operation | {"responses": operation["responses"] | {"200": answer}}


def _read(
    operation: str,
    summary: str,
    schema: str,
    parameters: list[Json],
    *more: int,
    title: str = "Open Inference Protocol v2",
) -> Json:
    return {
        "operationId": operation,
        "tags": [_TAG],
        "summary": f"{summary} ({title})",
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
