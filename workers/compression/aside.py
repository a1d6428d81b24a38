"""Where files go that are needed for a moment: within the job's folder, which is removed however its process ends."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def files_in(folder: Path) -> Iterator[None]:
    """Temporary files of libraries too are made in this folder meanwhile.

    Not while a network learns: torch has sockets there, whose paths must be short.
    """
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
