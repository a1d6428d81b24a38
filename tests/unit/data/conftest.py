"""Runs the real ingest job in a folder of its own."""

import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from app.core.errors import InvalidData
from app.specs.data import IngestResult
from workers.context import Events, JobContext
from workers.jobs.ingest import run


@dataclass
class Outcome:
    result: IngestResult
    table: pl.DataFrame
    profile: dict[str, Any]
    events: list[dict[str, Any]]
    folder: Path

    def types(self) -> dict[str, str]:
        return {c.name: c.type for c in self.result.columns}

    def lines(self) -> list[int | None]:
        return [r.line for r in self.result.rejected_first]

    def warned(self, text: str) -> bool:
        return any(text in w for w in self.result.warnings)

    def column(self, name: str) -> dict[str, Any]:
        return next(c for c in self.profile["columns"] if c["name"] == name)


Ingest = Callable[..., Outcome]


@pytest.fixture
def ingest(tmp_path: Path) -> Ingest:
    """Ingest bytes or a file; keywords become limits. `stop` asks the job to stop before it begins."""

    def go(source: bytes | Path, name: str = "", *, stop: bool = False, **extra: Any) -> Outcome:
        folder = tmp_path / f"job{len(list(tmp_path.iterdir()))}"
        (folder / "input").mkdir(parents=True)
        raw = source if isinstance(source, bytes) else source.read_bytes()
        (folder / "input" / "original").write_bytes(raw)
        filename = name or (source.name if isinstance(source, Path) else "upload.csv")
        spec = {"dataset": "d@1", "filename": filename, "format": extra.pop("format", "auto"), "limits": extra}
        log = folder / "events"
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
        asked = threading.Event()
        if stop:
            asked.set()
        try:
            raw_result = run(JobContext("id", "ingest", 1, spec, folder, Events(descriptor), asked))
        finally:
            os.close(descriptor)
            assert not (folder / "scratch").exists()
        result = IngestResult.model_validate(json.loads(json.dumps(raw_result, allow_nan=False)))
        profile = json.loads(
            (folder / "output" / "profile.json").read_text(encoding="utf-8"), parse_constant=pytest.fail
        )
        assert profile["rows"] == result.rows
        assert profile["kind"] == result.kind
        assert [c["name"] for c in profile["columns"]] == [c.name for c in result.columns]
        table = pl.read_parquet(folder / "output" / "data.parquet")
        assert table["__row_id"].to_list() == list(range(result.rows))
        events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        return Outcome(result, table, profile, events, folder)

    return go


@pytest.fixture
def refused(ingest: Ingest) -> Callable[..., str]:
    """The detail of the InvalidData that the upload meets."""

    def go(source: bytes | Path, name: str = "", **extra: Any) -> str:
        with pytest.raises(InvalidData) as caught:
            ingest(source, name, **extra)
        return caught.value.detail

    return go


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real and hostile data beside the repository."""
    folder = Path(__file__).resolve().parents[4] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data, which is not part of the repository")
    return folder
