"""Copies of versions that nobody serves any more are removed, others never."""

import os
import time
from pathlib import Path

from app.services.local_copies import FOLDER, GRACE_S, mark_used, remove_unused


def copy(scratch: Path, name: str, age_s: float) -> Path:
    folder = scratch / FOLDER / name
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"x")
    os.utime(folder, (time.time() - age_s,) * 2)
    return folder


def test_only_what_is_old_and_not_needed_goes(tmp_path: Path):
    old, fresh = copy(tmp_path, "old", GRACE_S + 60), copy(tmp_path, "fresh", 60)
    served, killed = copy(tmp_path, "served", GRACE_S + 60), copy(tmp_path, ".half-7f", GRACE_S + 60)
    assert sorted(remove_unused(tmp_path, {"served"})) == [".half-7f", "old"]
    assert [folder.exists() for folder in (old, fresh, served, killed)] == [False, True, True, False]


def test_use_starts_the_grace_anew(tmp_path: Path):
    folder = copy(tmp_path, "again", GRACE_S + 60)
    mark_used(folder)
    assert remove_unused(tmp_path, set()) == []


def test_nothing_was_ever_served(tmp_path: Path):
    assert remove_unused(tmp_path, set()) == []
