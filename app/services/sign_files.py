"""Sign what a job has made, and see before serving that nobody has changed it since."""

import asyncio
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from app.core.errors import Corrupt
from app.core.jobs import Lease
from app.core.resources import ModelVersion, StoredFile
from app.core.version_folder import MANIFEST
from app.services.keep_files import keep_file
from app.services.platform import Platform
from app.settings import Settings
from app.store.disk import writing
from app.store.signing import Manifest, SigningKey, verify


def signing_key(settings: Settings) -> SigningKey:
    """The key that this machine signs with."""
    return SigningKey(settings.signing_key_file)


async def sign_version(platform: Platform, lease: Lease, files: Sequence[StoredFile], output: Path) -> list[StoredFile]:
    """`files` and their manifest."""
    subject = {"model": lease.spec["model"], "job": lease.job_id}
    return [*files, await _sign(platform, subject, "", files, output)]


async def sign_variants(
    platform: Platform, lease: Lease, files: Sequence[StoredFile], output: Path
) -> list[StoredFile]:
    """`files` and a manifest for each variant's folder, with paths relative to it: the folder may get another name."""
    subject = {"model": lease.spec["model"], "version": lease.spec["version"], "job": lease.job_id}
    signed = list(files)
    for folder, members in groupby(sorted(files, key=_folder), key=_folder):
        signed.append(await _sign(platform, subject, f"{folder}/", list(members), output))
    return signed


def _folder(file: StoredFile) -> str:
    return str(PurePosixPath(file.path).parent)


async def _sign(
    platform: Platform, subject: dict[str, Any], prefix: str, files: Sequence[StoredFile], output: Path
) -> StoredFile:
    listed = {file.path.removeprefix(prefix): file.sha256 for file in files}
    raw = await asyncio.to_thread(signing_key(platform.settings).sign, subject, listed)
    path = output / f"{prefix}{MANIFEST}"
    with writing(f"{output} (AIMASS_DATA_DIR)"):
        await asyncio.to_thread(path.write_bytes, raw)
    return await keep_file(platform, path, f"{prefix}{MANIFEST}")


async def check_signed(platform: Platform, version: ModelVersion, wanted: Sequence[StoredFile]) -> None:
    """Corrupt, naming the file, unless each of these files of a version is as a trusted key has signed it."""
    own = await asyncio.to_thread(signing_key(platform.settings).public)
    trusted = [*filter(None, [own]), *platform.settings.signing.trusted()]
    there = {file.path: file for file in version.files}
    read: dict[str, Manifest] = {}
    for file in wanted:
        prefix = next((p for p in _prefixes(file.path) if f"{p}{MANIFEST}" in there), None)
        if prefix is None:
            raise Corrupt(
                f"'{version.model}@{version.version}' has no {MANIFEST} for {file.path}; train or import it again"
            )
        if prefix not in read:
            raw = b"".join([chunk async for chunk in platform.store.read(there[f"{prefix}{MANIFEST}"].sha256)])
            try:
                read[prefix] = verify(raw, trusted)
            except Corrupt as error:
                raise Corrupt(f"'{version.model}@{version.version}': {prefix}{error.detail}") from None
            _check_subject(read[prefix], version)
        if read[prefix].files.get(file.path.removeprefix(prefix)) != file.sha256:
            raise Corrupt(f"{file.path} of '{version.model}@{version.version}' is not what was signed")


def _prefixes(path: str) -> list[str]:
    """The folders that `path` lies in, nearest first."""
    return [f"{folder}/" if str(folder) != "." else "" for folder in PurePosixPath(path).parents]


def _check_subject(manifest: Manifest, version: ModelVersion) -> None:
    """A good manifest of another version is not good for this one."""
    about = manifest.subject
    added = about.get("version") == version.version  # a variant that a later job has made
    if about.get("model") != version.model or not (added or about.get("job") == version.lineage.get("job")):
        raise Corrupt(f"{MANIFEST} of '{version.model}@{version.version}' belongs to another version")
