"""Let a search's report name its variants as the version does, also where another job has taken a name meanwhile."""

import asyncio
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from app.core.jobs import Lease
from app.core.resources import StoredFile
from app.core.version_folder import COMPRESSION, COMPRESSION_PAGE
from app.registry.models import ModelReader
from app.services.add_variants import beside
from app.services.keep_files import keep_file
from app.services.platform import Platform

Raw = dict[str, Any]


async def name_report(
    platform: Platform, lease: Lease, result: Raw, files: Sequence[StoredFile], output: Path
) -> tuple[list[str], list[StoredFile]]:
    """The names that the variants would be kept under now, and the files with a report that has them.

    A job names its variants freely of those that the version had when it began. Only what another job has added since
    then makes other names necessary: the report is written with them, and the page, which has pictures, says so.
    """
    async with platform.database.read() as session:
        version = await ModelReader(session).version(lease.spec["model"], lease.spec["version"])
    kept, _ = beside(version, result["variants"], files)
    names = names_between(result["variants"], kept)
    if all(old == new for old, new in names.items()):
        return [one["name"] for one in kept], list(files)
    told = [await _told_anew(platform, file, names, kept, output) for file in files]
    return [one["name"] for one in kept], told


def names_between(before: Sequence[Raw], after: Sequence[Raw]) -> dict[str, str]:
    """New names by old ones."""
    return {old["name"]: new["name"] for old, new in zip(before, after, strict=True)}


def renamed(search: Raw, names: Mapping[str, str]) -> Raw:
    """A search's report under the names that its variants are kept under."""
    return search | {
        **{key: search[key] and names[search[key]] for key in ("winner", "nearest")},
        "front": [names[name] for name in search["front"]],
        "candidates": [one | {"variant": names.get(one["variant"])} for one in search["candidates"]],
    }


async def _told_anew(
    platform: Platform, file: StoredFile, names: Mapping[str, str], variants: Sequence[Raw], output: Path
) -> StoredFile:
    """The file, or what takes its place if it is of the report."""
    name = file.path.rpartition("/")[2]
    if name not in {COMPRESSION, COMPRESSION_PAGE}:
        return file
    text = await asyncio.to_thread((output / file.path).read_text, "utf-8")
    if name == COMPRESSION:
        told = renamed(json.loads(text), names) | {"variants": list(variants)}
        text = json.dumps(told, allow_nan=False, ensure_ascii=False, indent=1)
    else:
        others = "; ".join(f"{html.escape(old)} is {html.escape(new)}" for old, new in names.items() if old != new)
        note = f"<p><b>Other jobs have taken names while this one ran. Among the version's variants {others}.</b></p>"
        text = text.replace("<body>", f"<body>\n{note}", 1)
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        await asyncio.to_thread(path.write_text, text, "utf-8")
        return await keep_file(platform, path, file.path)
