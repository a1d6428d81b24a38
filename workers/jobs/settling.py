"""What is settled once a model is trained, by rows that it has not learned from: the threshold of two classes."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from app.core.errors import InvalidSpec
from app.core.signature import Signature, Threshold
from app.specs.evaluation import TunedThreshold
from app.specs.jobs import TrainSpec
from workers.data.prepare import Prepared
from workers.evaluation.threshold import best_threshold
from workers.families.base import Fitted, HoldsOut
from workers.learning import Array


@dataclass(frozen=True, slots=True)
class Settled:
    """The signature with what was settled, and what the card says of it."""

    signature: Signature
    card: dict[str, Any]


def check_settling(spec: TrainSpec, prepared: Prepared) -> None:
    """InvalidSpec, before anything is trained, for what these rows cannot settle."""
    if spec.evaluation.threshold is None:
        return
    classes = prepared.signature.classes
    if len(classes) != 2:  # noqa: PLR2004 - two classes
        msg = f"'{spec.target}' has {len(classes)} classes; a threshold tells two apart, so leave it out"
        raise InvalidSpec.at("evaluation", "threshold", msg=msg)
    there = np.unique(prepared.part("validation")[1])
    if isinstance(spec.evaluation.threshold, TunedThreshold) and len(there) < len(classes):
        msg = f"no validation row has the label '{classes[1 - int(there[0])]}'; raise split.validation or name a number"
        raise InvalidSpec.at("evaluation", "threshold", msg=msg)


def settle(spec: TrainSpec, prepared: Prepared, fitted: Fitted, positive: int) -> Settled:
    """Tune what the spec wants tuned."""
    signature, asked = prepared.signature, spec.evaluation.threshold
    if asked is None:
        return Settled(signature, {"threshold": None})
    label, tuned = signature.classes[positive], None
    if isinstance(asked, TunedThreshold):
        y, answers, of = _held_out(prepared, fitted)
        probability, reached, usual = best_threshold(y == positive, answers[:, positive], asked.maximize)
        tuned = {"maximizes": asked.maximize, "reached": reached, "at_half": usual, "rows": len(y), "of": of}
    else:
        probability = asked
    threshold = Threshold(label, probability)
    card = {"label": label, "probability": probability, "tuned": tuned}
    return Settled(replace(signature, threshold=threshold), {"threshold": card})


def _held_out(prepared: Prepared, fitted: Fitted) -> tuple[Array, Array, str]:
    """Targets and answers of rows that the model has not learned from, and which these are."""
    if isinstance(fitted, HoldsOut):
        return *fitted.held_out(), "rows that the models left out"
    inputs, y = prepared.part("validation")
    return y, fitted.predict(inputs), "validation rows"
