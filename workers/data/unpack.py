"""gzip, zip and tar: members are read one at a time under limits; nothing is ever extracted by its own name."""

import gzip
import re
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from app.core.errors import InvalidData
from app.settings import LimitSettings
from workers.data.findings import Findings, shorten, unreadable

_CHUNK = 1 << 20
_ALWAYS = 1 << 20  # the ratio limit begins above this size
_UTF8_NAME = 0x800  # zip flag: the name is UTF-8
_ENCRYPTED = 0x1
_NESTED = (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar", ".bz2", ".xz")
_LITTER = re.compile(r"(^|/)(\.[^/]*|__MACOSX|Thumbs\.db|desktop\.ini)(/|$)", re.IGNORECASE)
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


@dataclass(slots=True)
class Budget:
    """How much an upload of `packed` bytes may unpack to."""

    packed: int
    limits: LimitSettings
    used: int = 0

    def spend(self, count: int) -> None:
        """InvalidData once the total is over the size or the ratio limit."""
        self.used += count
        if self.used > self.limits.unpacked_mb << 20:
            raise unreadable(
                f"it unpacks to over {self.limits.unpacked_mb:,} MiB (AIMASS_LIMIT_UNPACKED_MB); upload it in parts"
            )
        if self.used > max(_ALWAYS, self.packed * self.limits.unpack_ratio):
            raise unreadable(
                f"it unpacks to over {self.limits.unpack_ratio} times its size (AIMASS_LIMIT_UNPACK_RATIO), as a "
                "decompression bomb does; upload it unpacked"
            )


def gunzip(source: IO[bytes], target: Path, budget: Budget) -> None:
    """Unpack one layer of gzip into `target`. InvalidData: truncated, a wrong checksum, or over the budget."""
    try:
        with gzip.GzipFile(fileobj=source) as packed, target.open("wb") as file:
            while chunk := packed.read(_CHUNK):
                budget.spend(len(chunk))
                file.write(chunk)
    except EOFError:
        raise unreadable("the gzip file is truncated: it ends before its data does; upload it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise unreadable(
            f"the gzip file is damaged ({error}); its checksum or data is wrong, so upload it again"
        ) from None


@dataclass(frozen=True, slots=True)
class Member:
    """One regular file of an archive. `name` is relative and safe to show; no file is created under it."""

    name: str
    size_bytes: int
    _open: Callable[[], IO[bytes]] = field(repr=False)

    def read(self) -> bytes:
        """The whole content. InvalidData if the member is damaged."""
        try:
            with self._open() as file:
                return file.read(self.size_bytes + 1)
        except _DAMAGED as error:
            raise InvalidData(f"damaged in the archive: {shorten(str(error), 100)}") from None

    def copy(self, target: Path) -> None:
        """Write the content to `target`, a path of the caller's choice."""
        try:
            with self._open() as file, target.open("wb") as copy:
                while chunk := file.read(_CHUNK):
                    copy.write(chunk)
        except _DAMAGED as error:
            raise unreadable(
                f"'{shorten(self.name, 100)}' is damaged in the archive: {shorten(str(error), 100)}"
            ) from None


@contextmanager
def members(path: Path, kind: Literal["zip", "tar"], budget: Budget, findings: Findings) -> Iterator[list[Member]]:
    """The usable files of an archive, in its order. Unsafe ones (links, devices, escaping names) are rejected by name.

    InvalidData: damaged, encrypted, over a limit, two members of one name, or nothing usable.
    """
    opener = _zip_members if kind == "zip" else _tar_members
    with ExitStack() as stack:
        try:
            found = stack.enter_context(opener(path, budget, findings))
        except _DAMAGED as error:
            raise unreadable(f"the archive is damaged: {shorten(str(error), 100)}; upload it again") from None
        _check_unique(found)
        if not found:
            raise unreadable(f"the archive holds no usable file; {findings.first_rejection() or 'it is empty'}")
        yield found


@contextmanager
def _zip_members(path: Path, budget: Budget, findings: Findings) -> Iterator[list[Member]]:
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        _check_count(len(infos), budget.limits)
        found = []
        for info, name in zip(infos, _names([_stored_name(info) for info in infos]), strict=True):
            if info.flag_bits & _ENCRYPTED:
                raise unreadable("the archive is encrypted; upload it without a password")
            mode = info.external_attr >> 16
            special = stat.S_IFMT(mode) not in {0, stat.S_IFREG, stat.S_IFDIR}
            if not info.is_dir() and _usable(name, findings, special="a link or device" if special else None):
                budget.spend(info.file_size)
                found.append(Member(name, info.file_size, lambda info=info: archive.open(info)))  # type: ignore[misc]
        yield found


def _stored_name(info: zipfile.ZipInfo) -> bytes:
    """The bytes of the name; zipfile has read them as CP437 unless they are marked as UTF-8."""
    return info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8_NAME else "cp437")


def _names(stored: list[bytes]) -> list[str]:
    """Names as their author saw them: UTF-8 if all are, or else what old tools in China wrote, or else CP437."""
    for codec in ("utf-8", "gb18030"):
        try:
            return [name.decode(codec) for name in stored]
        except UnicodeDecodeError:
            continue
    return [name.decode("cp437") for name in stored]


@contextmanager
def _tar_members(path: Path, budget: Budget, findings: Findings) -> Iterator[list[Member]]:
    with tarfile.open(path, "r:", encoding="utf-8") as archive:
        infos = []
        for info in archive:
            infos.append(info)
            _check_count(len(infos), budget.limits)
        found = []
        stored = [info.name.encode("utf-8", "surrogateescape") for info in infos]
        for info, name in zip(infos, _names(stored), strict=True):
            special = None if info.isreg() or info.isdir() else "a link or device"
            if not info.isdir() and _usable(name, findings, special=special):
                budget.spend(info.size)
                found.append(Member(name, info.size, lambda info=info: _tar_open(archive, info)))  # type: ignore[misc]
        yield found


def _tar_open(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(info)
    if file is None:
        raise tarfile.TarError("not a regular file")
    return file


def _check_count(count: int, limits: LimitSettings) -> None:
    if count > limits.archive_members:
        raise unreadable(
            f"the archive has over {limits.archive_members:,} members (AIMASS_LIMIT_ARCHIVE_MEMBERS); "
            "upload it in parts"
        )


def _usable(name: str, findings: Findings, *, special: str | None) -> bool:
    """False for litter of operating systems, which is left out, and for unsafe members, which are rejected."""
    reason = special or _unsafe(name)
    if reason:
        findings.reject(f"{reason}; archives may hold regular files under relative names only", path=name)
        return False
    if _LITTER.search(name):
        return False
    if name.lower().endswith(_NESTED):
        findings.reject("an archive within the archive is not opened; unpack it first", path=name)
        return False
    return True


def _unsafe(name: str) -> str | None:
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "an absolute name"
    if "\\" in name:
        return "a backslash in the name"
    if ".." in name.split("/"):
        return "a name that leaves the archive (..)"
    if any(unicodedata.category(char) in {"Cc", "Cs"} for char in name):
        return "control characters in the name"
    return None


def _check_unique(found: list[Member]) -> None:
    seen: set[str] = set()
    for member in found:
        name = "/".join(part for part in member.name.split("/") if part not in {"", "."})
        if name in seen:
            raise unreadable(
                f"the archive holds two members called '{shorten(name, 100)}'; it is not clear which is meant"
            )
        seen.add(name)
