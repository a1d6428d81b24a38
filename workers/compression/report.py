"""What a compress job has found: as JSON, and as a page that needs no server."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.core.version_folder import COMPRESSION, COMPRESSION_PAGE
from workers.evaluation.page import compression_page
from workers.evaluation.variant import Variant
from workers.export.version_files import write_json


def write_report(folder: Path, report: Mapping[str, Any], variants: Sequence[Variant], main_metric: str) -> None:
    """`compression.json` and `compression.html`, of a report with a winner."""
    from workers.evaluation.plots import draw  # noqa: PLC0415 - matplotlib is loaded for those who want plots alone

    folder.mkdir(parents=True, exist_ok=True)
    told = {**report, "main_metric": main_metric, "variants": [variant.to_json() for variant in variants]}
    write_json(folder / COMPRESSION, told)
    pictures = draw({"curves": {}, "compression": report})
    (folder / COMPRESSION_PAGE).write_text(compression_page(told, pictures), encoding="utf-8")
