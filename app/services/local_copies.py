"""Copies of served versions on this machine, and their removal once no endpoint needs them."""

import contextlib
import os
import shutil
import time
from collections.abc import Collection
from pathlib import Path

FOLDER = "serving"
GRACE_S = 3600.0  # longer than a gateway beside this one takes from fetching a version to serving it


def mark_used(folder: Path) -> None:
    """Start the grace of a copy anew."""
    os.utime(folder)


def remove_unused(scratch: Path, needed: Collection[str], grace_s: float = GRACE_S) -> list[str]:
    """Remove copies that are not `needed` and were not fetched or used for `grace_s`; their names.

    Also what gateways that were killed while they fetched have left.
    """
    removed: list[str] = []
    for folder in (scratch / FOLDER).glob("*"):
        with contextlib.suppress(FileNotFoundError):  # a gateway beside this one does the same
            if folder.name not in needed and time.time() - folder.stat().st_mtime > grace_s:
                shutil.rmtree(folder)
                removed.append(folder.name)
    return removed
