"""What an output of an imported model says: probabilities or values, whatever form they come in."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from app.core.errors import InvalidData
from app.core.signature import Signature, Task
from app.specs.mapping import answering_tensor
from workers.learning import Array

_BATCH = 1024
_MAPPED_BATCH = 32  # rows of imported models may be large
_SUM_TOLERANCE = 0.02  # of probabilities in half precision
Form = Literal["probabilities", "logits", "logit", "probability", "value"]


@dataclass(frozen=True, slots=True)
class Answering:
    """How a model is asked and understood.

    `output` is the name of the one that answers (None: the first), `batch` the most rows of a run, and `form` what it
    gives: `probabilities` or `logits` of all classes, the `probability` or the `logit` of the second of two, or a
    regression's `value`. Without a form the output is taken as it is, as that of a model trained here.
    """

    output: str | None = None
    batch: int = _BATCH
    form: Form | None = None

    def read(self, raw: Array) -> Array:
        """The output of N rows as probabilities [N, K] or values [N]."""
        if self.form is None:
            return raw
        numbers = raw.astype(np.float64)
        if self.form == "value":
            return numbers.reshape(-1)
        if self.form == "probabilities":
            return np.asarray(numbers / np.maximum(numbers.sum(axis=1, keepdims=True), 1e-12))
        if self.form == "logits":
            weights = np.exp(numbers - numbers.max(axis=1, keepdims=True))
            return np.asarray(weights / weights.sum(axis=1, keepdims=True))
        second = numbers.reshape(-1)
        if self.form == "logit":
            second = 0.5 * (1 + np.tanh(second / 2))  # the logistic function, without an overflow
        return np.stack([1 - second, second], axis=1)


def answering_output(signature: Signature, asked: str | None, task: Task, n_classes: int) -> Answering:
    """How a model is asked for the output that answers; InvalidSpec if none fits."""
    tensor = answering_tensor(signature, asked, task, n_classes)
    return Answering(tensor.name, _MAPPED_BATCH if signature.batched else 1)


def form_of(raw: Array, task: Task, n_classes: int, asked: Literal["probabilities", "logits"] | None = None) -> Form:
    """What numbers these are: probabilities lie in 0..1, and those of all classes add up to one; others are logits.

    Args:
        raw: the output for N rows.
        task: that it answers.
        n_classes: of the labels; 0 for regression.
        asked: what the caller says they are.

    Raises:
        InvalidData: a row has neither one number nor one for each class.
    """
    if len(raw) != raw.size and (task == "regression" or raw.shape != (len(raw), n_classes)):
        wanted = "one number" if task == "regression" else f"{n_classes}, one for each class"
        msg = f"the model answers a row with {raw.size // max(1, len(raw))} numbers, and not with {wanted}"
        raise InvalidData.at("mapping", "output", msg=msg)
    if task == "regression":
        return "value"
    numbers = raw.astype(np.float64)
    likely = bool(numbers.min() >= 0 and numbers.max() <= 1 + _SUM_TOLERANCE)
    if raw.size == len(raw):
        likely = likely if asked is None else asked == "probabilities"
        return "probability" if likely else "logit"
    likely = likely and bool(np.allclose(numbers.sum(axis=1), 1, atol=_SUM_TOLERANCE))
    likely = likely if asked is None else asked == "probabilities"
    return "probabilities" if likely else "logits"
