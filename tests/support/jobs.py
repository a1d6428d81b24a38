"""Job specs that tests share."""

from typing import Any

TUMOURS: dict[str, Any] = {"kind": "train", "dataset": "tumours@1", "task": "classification", "target": "diagnosis"}


def quick(model: str, **changes: Any) -> dict[str, Any]:
    """Trains in about a second."""
    return {**TUMOURS, "model": model, "family": "linear", "evaluation": {"plots": False}, **changes}


def long(model: str, **changes: Any) -> dict[str, Any]:
    """Trains for a minute or so, and writes a checkpoint after every epoch."""
    training = {"epochs": 5000, "batch_size": 64, "early_stopping": None, "checkpoint_every_s": 0}
    return {**TUMOURS, "model": model, "family": "mlp", "training": training, **changes}
