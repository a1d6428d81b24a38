"""The model card as a page: one file with everything in it, for a person. Every value is escaped."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from workers.evaluation.steps import in_words

_ABSENT = "\N{EN DASH}"
_TEMPLATE, _COMPRESSION, _REPORT = "card.html.j2", "compression.html.j2", "report.html.j2"
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
    lstrip_blocks=True,
)  # fmt: skip


def card_page(card: Mapping[str, Any], evaluation: Mapping[str, Any], plots: Mapping[str, bytes]) -> str:
    """HTML without scripts. It needs no server: plots are pictures inside it, which cannot run anything either.

    Args:
        card: the model card, as `card.json` has it.
        evaluation: as `evaluation.json` has it.
        plots: by file name; the SVG are shown.
    """
    pictures = _pictures(plots)
    return _ENVIRONMENT.get_template(_TEMPLATE).render(card=card, evaluation=evaluation, pictures=pictures)


def compression_page(told: Mapping[str, Any], plots: Mapping[str, bytes]) -> str:
    """The page of a compress job, in the same manner.

    Args:
        told: as `compression.json` has it.
        plots: by file name; the SVG are shown.
    """
    pictures = _pictures(plots)
    return _ENVIRONMENT.get_template(_COMPRESSION).render(told=told, pictures=pictures)


def report_page(title: str, found: Mapping[str, Any], plots: Mapping[str, bytes]) -> str:
    """The page of an evaluate job, in the same manner.

    Args:
        title: the version that was judged.
        found: the job's result.
        plots: of the full model, by file name; the SVG are shown.
    """
    return _ENVIRONMENT.get_template(_REPORT).render(title=title, found=found, pictures=_pictures(plots))


def _pictures(plots: Mapping[str, bytes]) -> dict[str, str]:
    """Addresses by the names of plots, which hold the drawings themselves."""
    drawn = {name.removesuffix(".svg"): svg for name, svg in plots.items() if name.endswith(".svg")}
    return {name: _data_url(svg) for name, svg in drawn.items()}


def _data_url(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def _number(value: Any) -> str:  # noqa: ANN401 - whatever a card holds
    """Four significant digits; a dash where there is none."""
    if value is None:
        return _ABSENT
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _between(bounds: Any) -> str:  # noqa: ANN401 - as above
    return f"{_number(bounds[0])} to {_number(bounds[1])}" if bounds else _ABSENT


_ENVIRONMENT.filters |= {"number": _number, "between": _between, "steps": in_words}
