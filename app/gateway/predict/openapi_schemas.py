"""Schemas of what the dispatcher's paths take and give, for the OpenAPI document."""

from typing import Any, get_args

from app.core.signature import Datatype

Json = dict[str, Any]


def ref(name: str) -> Json:
    """A reference to one of the schemas."""
    return {"$ref": f"#/components/schemas/{name}"}


def object_of(properties: Json, required: list[str], **more: Any) -> Json:  # noqa: ANN401 - JSON schema
    """The schema of an object."""
    return {"type": "object", "properties": properties, "required": required, **more}


_TENSOR_FIELDS: Json = {
    "name": {"type": "string"},
    "datatype": {"type": "string", "enum": list(get_args(Datatype))},
    "shape": {"type": "array", "items": {"type": "integer"}},
}
_PARAMETERS: Json = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
_DATA: Json = {"type": "array", "items": {}, "description": "row-major, flat or nested; null is NaN; absent if binary"}

_PORTS: Json = {
    "type": "array",
    "items": object_of(
        {
            "name": {"type": "string"},
            "data_type": {"type": "string"},
            "dims": {"type": "array", "items": {"type": "integer"}},
        },
        ["name", "data_type", "dims"],
    ),
}

SCHEMAS: dict[str, Json] = {
    "PredictRequest": object_of(
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
    "Classification": object_of(
        {
            "label": {
                "type": "string",
                "description": "the likeliest class, or what the threshold tells",
            },
            "probabilities": {"type": "object", "additionalProperties": {"type": ["number", "null"]}},
        },
        ["label", "probabilities"],
    ),
    "Labels": object_of(
        {
            "labels": {
                "type": "array",
                "items": {"type": "string"},
                "description": "every label of a probability of a half or more",
            },
            "probabilities": {"type": "object", "additionalProperties": {"type": ["number", "null"]}},
        },
        ["labels", "probabilities"],
    ),
    "Regression": object_of(
        {
            "value": {"type": ["number", "null"]},
            "interval": {
                "type": "array",
                "items": {"type": ["number", "null"]},
                "minItems": 2,
                "maxItems": 2,
                "description": "low and high, of a model with prediction intervals",
            },
        },
        ["value"],
    ),
    "PredictResponse": object_of(
        {
            "predictions": {
                "type": "array",
                "items": {"anyOf": [ref("Classification"), ref("Labels"), ref("Regression")]},
            },
            "model": {"type": "string"},
            "version": {"type": "integer"},
            "variant": {"type": "string"},
            "request_id": {"type": "string"},
        },
        ["predictions", "model", "version", "variant", "request_id"],
    ),
    "InferRequest": object_of(
        {
            "id": {"type": "string"},
            "parameters": _PARAMETERS,
            "inputs": {
                "type": "array",
                "minItems": 1,
                "items": object_of(
                    _TENSOR_FIELDS | {"parameters": _PARAMETERS, "data": _DATA}, ["name", "datatype", "shape"]
                ),
            },
            "outputs": {
                "type": "array",
                "items": object_of({"name": {"type": "string"}, "parameters": _PARAMETERS}, ["name"]),
            },
        },
        ["inputs"],
    ),
    "InferResponse": object_of(
        {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {
                "type": "array",
                "items": object_of(
                    _TENSOR_FIELDS | {"parameters": _PARAMETERS, "data": _DATA}, ["name", "datatype", "shape"]
                ),
            },
        },
        ["model_name", "model_version", "outputs"],
    ),
    "ModelMetadata": object_of(
        {
            "name": {"type": "string"},
            "versions": {"type": "array", "items": {"type": "string"}},
            "platform": {"type": "string"},
            "inputs": {"type": "array", "items": object_of(_TENSOR_FIELDS, ["name", "datatype", "shape"])},
            "outputs": {"type": "array", "items": object_of(_TENSOR_FIELDS, ["name", "datatype", "shape"])},
        },
        ["name", "platform", "inputs", "outputs"],
    ),
    "ServerMetadata": object_of(
        {
            "name": {"type": "string"},
            "version": {"type": "string"},
            "extensions": {"type": "array", "items": {"type": "string"}},
        },
        ["name", "version", "extensions"],
    ),
    "ModelConfig": object_of(
        {"name": {"type": "string"}, "max_batch_size": {"type": "integer"}, "input": _PORTS, "output": _PORTS},
        ["name", "max_batch_size", "input", "output"],
    ),
    "ModelStatistics": object_of(
        {"model_stats": {"type": "array", "items": {"type": "object"}, "description": "counts, and times in ns"}},
        ["model_stats"],
    ),
    "RepositoryIndex": {
        "type": "array",
        "items": object_of(
            {
                "name": {"type": "string"},
                "version": {"type": "string"},
                "state": {"type": "string", "enum": ["READY", "UNAVAILABLE", "LOADING"]},
                "reason": {"type": "string"},
            },
            ["name", "state"],
        ),
    },
    "KserveModels": object_of({"models": {"type": "array", "items": {"type": "string"}}}, ["models"]),
    "KservePredictions": object_of(
        {
            "predictions": {
                "type": "array",
                "items": {},
                "description": "as in PredictResponse; of a model without columns with one output its values alone",
            }
        },
        ["predictions"],
    ),
    "ModelReady": object_of({"name": {"type": "string"}, "ready": {"type": "boolean"}}, ["name", "ready"]),
    "ServerLive": object_of({"live": {"type": "boolean"}}, ["live"]),
    "ServerReady": object_of({"ready": {"type": "boolean"}}, ["ready"]),
    "InferError": object_of({"error": {"type": "string"}}, ["error"]),
}
