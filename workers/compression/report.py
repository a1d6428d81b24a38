"""What a search has found, beside its best variant: as JSON, and as a page that needs no server."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.core.version_folder import COMPRESSION, COMPRESSION_PAGE
from workers.evaluation.page import compression_page
from workers.evaluation.variant import Variant
from workers.export.version_files import write_json


def write_report(output: Path, report: Mapping[str, Any], variants: Sequence[Variant], main_metric: str) -> None:
    """`compression.json` and `compression.html` in the best variant's folder; nothing where none is kept."""
    from workers.evaluation.plots import draw  # noqa: PLC0415 - matplotlib is loaded for those who want plots alone

    if report["winner"] is None:
        return
    folder = output / "variants" / report["winner"]
    told = {**report, "main_metric": main_metric, "variants": [variant.to_json() for variant in variants]}
    write_json(folder / COMPRESSION, told)
    pictures = draw({"curves": {}, "compression": report})
    (folder / COMPRESSION_PAGE).write_text(compression_page(told, pictures), encoding="utf-8")
