"""A disk that cannot be written or read, as callers should see it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from app.core.errors import NotFound, Unavailable

DISK_RETRY_S = 30.0  # somebody has to make room first


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Unavailable where the operating system refuses: a full disk, a quota. `what` names the disk and its setting."""
    try:
        yield
    except OSError as error:
        raise Unavailable(f"{what} cannot be written: {error.strerror or error}", retry_after_s=DISK_RETRY_S) from error


@contextmanager
def reading(what: str, missing: str) -> Iterator[None]:
    """NotFound, as `missing` says it, for a file that is not there; Unavailable where it is and cannot be read."""
    try:
        yield
    except FileNotFoundError:
        raise NotFound(missing) from None
    except OSError as error:
        raise Unavailable(f"{what} cannot be read: {error.strerror or error}", retry_after_s=DISK_RETRY_S) from error


@contextmanager
def fetching(target: Path) -> Iterator[BinaryIO]:
    """The open file `target`, in folders made for it; it is removed if anything is raised before the end."""
    try:
        with writing(f"{target.parent} (AIMASS_DATA_DIR)"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                yield file
    except BaseException:
        target.unlink(missing_ok=True)
        raise
