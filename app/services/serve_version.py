"""Bring a model version's files to this machine for serving."""

import asyncio
import hashlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from app.core.errors import Conflict, Corrupt
from app.core.host import host_class, serving_class
from app.core.resources import BASE_VARIANT, ModelVersion, StoredFile, Variant
from app.core.version_folder import GOLDEN, NAMES, SIGNATURE
from app.services.keep_files import lay_out, stored
from app.services.local_copies import FOLDER, mark_used
from app.services.platform import Platform
from app.services.sign_files import check_signed

log = logging.getLogger("aimass.serving")
NEEDED = frozenset({SIGNATURE, GOLDEN})


def choose_variant(version: ModelVersion, name: str | None, provider: str) -> Variant:
    """The variant called `name`, else the fastest accepted one. Conflict, saying why, if none may be served here.

    `provider` is what ONNX Runtime runs models on, by the setting. Misconfigured if its class cannot be told.
    """
    host = serving_class(provider)
    chosen = version.variant(name, host)
    if chosen is not None:
        return chosen
    known = next((v for v in version.variants if v.name == name), None)
    what = f"{version.model}@{version.version}"
    if known is None:
        names = ", ".join(v.name for v in version.variants if v.serves(host))
        raise Conflict(f"'{what}' has no variant '{name}'; it has: {names}")
    found = known if known.state == "rejected" else known.measured(host)
    if found is None:
        raise Conflict(
            f"variant '{name}' of '{what}' has not been measured on hosts with {host}, and may answer otherwise there; "
            f"run {_measure_job(provider)} on such a host, or take fp32"
        )
    raise Conflict(f"variant '{name}' of '{what}' was rejected: {found.reason}")


def fit_variant(version: ModelVersion, name: str, provider: str) -> Variant:
    """As an endpoint was given it: the base until, or unless, its variant is found good for this class of hosts.

    An endpoint that was routed on another host serves on, exactly, if slower. Conflict if there is no such variant.
    """
    known = next((v for v in version.variants if v.name == name and v.state == "accepted"), None)
    host = serving_class(provider)
    if known is None or known.serves(host):
        return choose_variant(version, name, provider)
    log.warning(
        "%s@%d: %s is served, since variant '%s' is not known to be good on hosts with %s; run %s there",
        version.model, version.version, BASE_VARIANT, name, host, _measure_job(provider),
    )  # fmt: skip
    return choose_variant(version, BASE_VARIANT, provider)


def best_where_made(version: ModelVersion) -> Variant:
    """The fastest accepted variant on the class of hosts, or GPUs, where a job has just made the version."""
    base = version.variant(BASE_VARIANT, "")
    made = host_class(base.latency.get("host")) if base is not None else ""
    chosen = version.variant(None, made)
    if chosen is None:
        raise Corrupt(f"'{version.model}@{version.version}' has no variant that may be served")
    return chosen


def _measure_job(provider: str) -> str:
    """What measures for gateways that run models there."""
    return "a job of kind measure" + ("" if provider == "cpu" else " with resources.device cuda")


async def serve_version(platform: Platform, version: ModelVersion, variant: Variant) -> tuple[Path, Path]:
    """(folder, model file) on this machine; files that are not there, or not what they should be, are fetched.

    Unavailable if the store does not give one; Corrupt if one is not what was signed.
    """
    folder = platform.scratch / FOLDER / version.digest
    graph = variant.path
    if graph is None:
        raise Corrupt(f"variant '{variant.name}' of '{version.model}@{version.version}' has no file")
    wanted = [f for f in version.files if f.path in NEEDED or f.path == graph or _is_external(f, Path(graph).parent)]
    what = f"a file of '{version.model}@{version.version}'"
    with stored(what):
        await check_signed(platform, version, wanted)
    with suppress(FileNotFoundError):  # first: an old copy that nothing serves may be removed at any moment
        await asyncio.to_thread(mark_used, folder)
    missing = await asyncio.to_thread(_missing, folder, wanted)
    if missing:
        # Fetched aside and renamed, so that a gateway beside this one never sees half a file.
        aside = platform.scratch / FOLDER / f".{version.digest}-{id(missing):x}"
        try:
            with stored(what), _named(version):
                await lay_out(platform, missing, aside)
            await asyncio.to_thread(_move_in, aside, folder, missing)
        finally:
            await asyncio.to_thread(shutil.rmtree, aside, ignore_errors=True)
    await asyncio.to_thread(mark_used, folder)
    return folder, folder / graph


@contextmanager
def _named(version: ModelVersion) -> Iterator[None]:
    """Corrupt that says whose file it is: an operator has many versions."""
    try:
        yield
    except Corrupt as error:
        raise Corrupt(f"'{version.model}@{version.version}': {error.detail}") from None


def _is_external(file: StoredFile, folder: Path) -> bool:
    """True for tensor data beside a graph, whatever it is called: its name is the exporter's choice."""
    path = Path(file.path)
    return path.parent == folder and path.name not in NAMES


def _missing(folder: Path, wanted: Sequence[StoredFile]) -> list[StoredFile]:
    """Files that are not there, or not what they should be."""
    return [file for file in wanted if _digest(folder / file.path) != file.sha256]


def _digest(path: Path) -> str | None:
    """None for what is no file, or one that cannot be read: it is replaced."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _move_in(aside: Path, folder: Path, files: list[StoredFile]) -> None:
    for file in files:
        target = folder / file.path
        _make_room(target, folder)
        (aside / file.path).replace(target)


def _make_room(target: Path, folder: Path) -> None:
    """A folder where a file belongs goes, and so does a file where a folder does."""
    for parent in reversed(target.parents[: len(target.relative_to(folder).parts)]):
        if not parent.is_dir():
            parent.unlink(missing_ok=True)
        parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
