"""JSON schemas of what a model's callers send and get: one instance, one prediction."""

from typing import Any

from app.core.signature import Column, Signature, Tensor

Json = dict[str, Any]
_COLUMNS = {"number": "number", "integer": "integer", "boolean": "boolean", "category": "string", "text": "string"}
_TENSORS = {"BOOL": "boolean", "BYTES": "string"} | dict.fromkeys(("FP16", "BF16", "FP32", "FP64"), "number")
_PICTURE: list[Json] = [
    {"type": "string", "contentEncoding": "base64", "description": "an encoded picture, in base64"},
    {"type": "array", "items": {}, "description": "pixels 0-255, [H][W] or [C][H][W]"},
]


def instance_schema(signature: Signature) -> Json:
    """One instance: a row of columns, a picture, or nested lists by input (the list alone where there is one input)."""
    if signature.task == "inference":
        nested = {tensor.name: _nested(tensor, batched=signature.batched) for tensor in signature.inputs}
        return {"anyOf": [_object(nested), *nested.values()]} if len(nested) == 1 else _object(nested)
    image = next((column for column in signature.columns if column.type == "image"), None)
    if image is not None:
        return {"anyOf": [*_PICTURE, _object({image.name: {"anyOf": _PICTURE}})]}
    return _object({column.name: _column(column) for column in signature.columns})


def prediction_schema(signature: Signature) -> Json:
    """One prediction: label and probabilities, a value and its interval, or nested lists by output."""
    number: Json = {"type": ["number", "null"]}
    if signature.task == "inference":
        return _object({tensor.name: _nested(tensor, batched=signature.batched) for tensor in signature.outputs})
    if signature.task == "regression":
        interval = {"type": "array", "items": number, "minItems": 2, "maxItems": 2}
        if signature.coverage is None:
            return _object({"value": number})
        said = f"low and high, which hold {signature.coverage:.4g} of the true values between them"
        return _object({"value": number, "interval": interval | {"description": said}})
    if signature.task == "multilabel":
        labels = {"type": "array", "items": {"type": "string", "enum": list(signature.classes)}}
        return _object({"labels": labels, "probabilities": _object(dict.fromkeys(signature.classes, number))})
    label: Json = {"type": "string", "enum": list(signature.classes)}
    if (threshold := signature.threshold) is not None:
        label["description"] = f"'{threshold.label}' from a probability of {threshold.probability:g} on"
    return _object({"label": label, "probabilities": _object(dict.fromkeys(signature.classes, number))})


def _object(properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _column(column: Column) -> Json:
    """Missing is null; the column has to be there all the same."""
    kind = _COLUMNS[column.type]
    return {"type": [kind, "null"], "description": "null: missing"} if column.nullable else {"type": kind}


def _nested(tensor: Tensor, *, batched: bool) -> Json:
    kind = _TENSORS.get(tensor.datatype, "integer")
    schema: Json = {"type": ["number", "null"], "description": "null: NaN"} if kind == "number" else {"type": kind}
    for size in reversed(tensor.shape[1:] if batched else tensor.shape):
        bounds = {} if size < 0 else {"minItems": size, "maxItems": size}
        schema = {"type": "array", "items": schema, **bounds}
    return schema
