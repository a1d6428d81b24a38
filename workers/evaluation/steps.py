"""A recipe's steps in a line, for logs and pages: recipes that differ are told by other words."""

from collections.abc import Mapping, Sequence
from typing import Any

_NAMES = 4  # of a list that are told
_HEAD = ("step", "method")
Step = Mapping[str, Any]


def in_words(recipe: Sequence[Step]) -> str:
    """As `low_rank (energy 0.9), quantize static (MatMul, Gemm; uint8, min-max, float between)`."""
    return ", ".join(map(_step, recipe))


def _step(step: Step) -> str:
    """Texts stand for themselves, numbers behind their name, switches that are on by their name alone."""
    head = " ".join(str(step[name]) for name in _HEAD if name in step)
    rest = {name.replace("_", " "): value for name, value in step.items() if name not in _HEAD}
    lists = [_listed(name, value) for name, value in rest.items() if isinstance(value, list) and value]
    words = [_setting(name, value) for name, value in rest.items() if not isinstance(value, list)]
    told = "; ".join([*lists[:1], ", ".join(filter(None, words)), *lists[1:]]).strip("; ")
    return f"{head} ({told})" if told else head


def _listed(name: str, values: Sequence[Any]) -> str:
    some = [str(value) for value in (values if len(values) <= _NAMES else values[: _NAMES - 1])]
    told = ", ".join(some) + (f" and {len(values) - len(some)} more" if len(values) > len(some) else "")
    return told if name == "operators" else f"{name}: {told}"


def _setting(name: str, value: Any) -> str:  # noqa: ANN401 - whatever a step holds
    if value is None or isinstance(value, bool):
        return name if value else ""
    return value if isinstance(value, str) else f"{name} {value}"
