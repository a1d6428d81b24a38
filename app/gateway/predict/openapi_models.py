"""An OpenAPI operation for each model that is served: its real columns or tensors, its classes, and a row to try."""

import base64
import logging
import math
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from app.core.errors import AimassError
from app.core.instance_schema import instance_schema, prediction_schema
from app.core.signature import Column
from app.core.version_folder import GOLDEN
from app.gateway.predict.openapi import predict_operation
from app.gateway.predict.openapi_schemas import Json, object_of
from app.serving.careful import TEXTS
from app.serving.golden import read_golden
from app.serving.host import About

_log = logging.getLogger(__name__)
_MAX_EXAMPLE = 4096  # elements of an example; larger ones would make the document unreadable


def with_models(document: Json, models: Iterable[About]) -> Json:
    """A copy of the document with the operations added; reads each model's golden row from its folder.

    A model whose row cannot be read has an operation without an example, and the log says why.
    """
    paths = dict(document["paths"])
    for about in models:
        name = about.source.endpoint
        paths[f"/api/v1/endpoints/{name}/predict"] = {"post": _operation(about, name)}
    return document | {"paths": paths}


def _operation(about: About, name: str) -> Json:
    source, signature = about.source, about.signature
    instance = instance_schema(signature)
    body: Json = {"schema": object_of({"instances": _list(instance)}, ["instances"], additionalProperties=False)}
    if (example := _readable(about)) is not None:
        body["example"] = {"instances": [example]}
    operation = predict_operation(f"endpoints_predict_{name}", named=False)
    answered = operation["responses"]["200"]["content"]["application/json"]
    answered["schema"] = object_of(
        {
            "predictions": _list(prediction_schema(signature)),
            "model": {"const": source.model},
            "version": {"const": source.version},
            "variant": {"const": source.variant},
            "request_id": {"type": "string"},
        },
        ["predictions", "model", "version", "variant", "request_id"],
    )
    return operation | {
        "summary": f"Predict with {source.model}@{source.version}",
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": {key: value for key, value in operation["responses"].items() if key != str(HTTPStatus.NOT_FOUND)},
    }


def _list(items: Json) -> Json:
    return {"type": "array", "minItems": 1, "items": items}


def _readable(about: About) -> Any:  # noqa: ANN401 - any JSON
    """The model's example; None, and a line in the log, if its recorded rows are not what they should be."""
    try:
        return _example(about)
    except Exception as error:  # noqa: BLE001 - what is wrong with one model's file must not cost the others theirs
        why = error.detail if isinstance(error, AimassError) else repr(error)
        _log.warning(
            "endpoint=%s %s has no example in the API's document: %s", about.source.endpoint, about.source, why
        )
        return None


def _example(about: About) -> Any:  # noqa: ANN401 - any JSON
    """The first row that the model's export recorded; None if it is too large to be read."""
    signature = about.signature
    golden = read_golden(about.source.folder / GOLDEN, signature)
    first = [tensor[0] if signature.batched else tensor for tensor in golden.inputs]
    rows = dict(zip((tensor.name for tensor in signature.inputs), first, strict=True))
    if signature.task == "inference":
        small = sum(row.size for row in rows.values()) <= _MAX_EXAMPLE
        return {name: _plain(row.tolist()) for name, row in rows.items()} if small else None
    if signature.image is not None:
        from app.serving.images import encode_image  # noqa: PLC0415 - Pillow takes 2 MiB, for models of pictures alone

        return base64.b64encode(encode_image(rows[signature.inputs[0].name])).decode()
    return {column.name: _value(column, rows[column.tensor][column.index]) for column in signature.columns}


def _value(column: Column, element: Any) -> Any:  # noqa: ANN401 - a numpy scalar or text
    if column.type in TEXTS:
        return None if column.nullable and not element else element
    if math.isnan(element):
        return None
    number = float(element)
    return bool(number) if column.type == "boolean" else int(number) if column.type == "integer" else number


def _plain(value: Any) -> Any:  # noqa: ANN401 - nested lists
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
