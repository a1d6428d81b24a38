"""Output tensors to the `predictions` of a REST answer."""

import math
from collections.abc import Callable
from functools import partial

import orjson

from app.core.errors import Corrupt
from app.core.signature import Signature
from app.serving.answer_limit import too_large_answer
from app.serving.nested import bare_predictions, nested_predictions
from app.serving.types import Tensors

_HALF = 0.5
_AT_ONCE = 16 * 1024  # elements; orjson lets no other thread go on before it is done: some milliseconds
PredictionEncoder = Callable[[Tensors], bytes]


def prediction_encoder(signature: Signature) -> PredictionEncoder:
    """Encoder of outputs, in the signature's order, to a JSON list with one object per row.

    A classifier's row is {"label", "probabilities": {label: p}}, where the label is the likeliest class, or the one
    that the signature's threshold tells; if a row may have several, it is {"labels", "probabilities"}. A regressor's is
    {"value"}, with prediction intervals {"value", "interval": [low, high]}, and that of a model without columns nested
    lists by output name. A value that is not finite becomes null. Corrupt if the signature lacks the output that its
    task needs.
    """
    if signature.task == "inference":
        return partial(nested_predictions, signature)
    names = [tensor.name for tensor in signature.outputs]
    wanted = "value" if signature.task == "regression" else "probabilities"
    if wanted not in names:
        raise Corrupt(f"signature.json: a {signature.task} model needs the output '{wanted}', it has {names}")
    at = names.index(wanted)
    if signature.task == "regression":
        if signature.coverage is not None:
            return _intervals(names)
        return lambda outputs: orjson.dumps([{"value": value} for value in outputs[at].reshape(-1).tolist()])
    classes = signature.classes
    if signature.outputs[at].shape[-1] not in {-1, len(classes)}:
        raise Corrupt(f"signature.json: {len(classes)} classes for {signature.outputs[at].shape[-1]} probabilities")

    if signature.task == "multilabel":
        return partial(_labelled, classes, at)
    label_of = _labeller(signature)

    def classify(outputs: Tensors) -> bytes:
        return orjson.dumps(
            [
                {"label": label_of(row), "probabilities": dict(zip(classes, row, strict=True))}
                for row in outputs[at].tolist()
            ]
        )

    return classify


def v1_encoder(signature: Signature) -> PredictionEncoder:
    """As `prediction_encoder`, in TensorFlow Serving's form: a model without columns does not name its only output."""
    if signature.task == "inference" and len(signature.outputs) == 1:
        return partial(bare_predictions, signature)
    return prediction_encoder(signature)


def in_parts(encode: PredictionEncoder, outputs: Tensors, most: float = math.inf) -> bytes:
    """As `encode` for outputs whose first dimension is rows, with pauses in which other threads go on.

    PayloadTooLarge once it would be more than `most` bytes.
    """
    rows = len(outputs[0])
    step = max(1, rows * _AT_ONCE // max(1, sum(array.size for array in outputs)))
    parts, written = list[bytes](), 0
    for at in range(0, rows, step):
        parts.append(encode(tuple(array[at : at + step] for array in outputs))[1:-1])
        written += len(parts[-1])
        if written > most:
            raise too_large_answer(written, most)
    return b"[%b]" % b",".join(parts)


def _labelled(classes: tuple[str, ...], at: int, outputs: Tensors) -> bytes:
    """Every label of a probability of a half or more."""
    rows = (dict(zip(classes, row, strict=True)) for row in outputs[at].tolist())
    return orjson.dumps(
        [{"labels": [name for name, p in row.items() if p >= _HALF], "probabilities": row} for row in rows]
    )


def _intervals(names: list[str]) -> PredictionEncoder:
    """Values with the interval around each."""
    if not {"lower", "upper"} <= set(names):
        raise Corrupt(f"signature.json: prediction intervals need the outputs 'lower' and 'upper', it has {names}")
    places = [names.index(name) for name in ("value", "lower", "upper")]

    def encode(outputs: Tensors) -> bytes:
        columns = (outputs[at].reshape(-1).tolist() for at in places)
        return orjson.dumps([{"value": value, "interval": bounds} for value, *bounds in zip(*columns, strict=True)])

    return encode


def _labeller(signature: Signature) -> Callable[[list[float]], str]:
    """From a row's probabilities to its label: the likeliest class, or that of two which the threshold tells."""
    classes, threshold = signature.classes, signature.threshold
    if threshold is None:
        return lambda row: classes[row.index(max(row))]
    if threshold.label not in classes or len(classes) != 2:  # noqa: PLR2004 - two classes
        raise Corrupt(f"signature.json: a threshold of '{threshold.label}' for the classes {list(classes)}")
    at = classes.index(threshold.label)
    return lambda row: classes[at if row[at] >= threshold.probability else 1 - at]
