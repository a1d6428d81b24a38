"""Give a version more variants. One that was accepted never changes, since an endpoint may serve it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from app.core.resources import BASE_VARIANT, ModelVersion, StoredFile
from app.registry.models import ModelWriter
from app.registry.session import WriteSession

Raw = dict[str, Any]


async def add_variants(
    session: WriteSession, model: str, number: int, variants: Sequence[Raw], files: Sequence[StoredFile]
) -> list[Raw]:
    """The variants as they are kept, under the names that they have now."""
    writer = ModelWriter(session)
    version = await writer.pin(model, number)  # two compress jobs that end at once take their names one by one
    kept, placed = beside(version, variants, files)
    await writer.add_variants(model, number, kept, placed)
    return kept


def beside(
    version: ModelVersion, variants: Sequence[Raw], files: Sequence[StoredFile]
) -> tuple[list[Raw], list[StoredFile]]:
    """`variants` and their files, renamed `int8-2`, `int8-3` … where the name is that of another accepted variant.

    A variant with the very same model file as an accepted one has that one's name: it is the old one, measured anew.
    """
    there = {file.path: file.sha256 for file in version.files}
    accepted = {
        variant.name: there.get(variant.path or "") for variant in version.variants if variant.state == "accepted"
    }
    known = {digest: name for name, digest in accepted.items() if name != BASE_VARIANT}
    named = {raw["name"] for raw in variants}
    moved: dict[str, str] = {}
    kept: list[Raw] = []
    for raw in variants:
        digest = next((file.sha256 for file in files if file.path == raw["path"]), None)
        name = known.get(digest) if digest else None
        name = name or _free(raw["name"], accepted, named)
        named.add(name)
        moved[f"variants/{raw['name']}/"] = f"variants/{name}/"
        kept.append(raw | {"name": name, "path": raw["path"] and _placed(raw["path"], moved)})
    # Two variants of one file are one: its path is there once.
    placed = {path: replace(file, path=path) for file in files for path in [_placed(file.path, moved)]}
    return kept, list(placed.values())


def _free(wanted: str, accepted: Collection[str], named: Collection[str]) -> str:
    name, number = wanted, 1
    while name in accepted or (number > 1 and name in named):
        number += 1
        name = f"{wanted}-{number}"
    return name


def _placed(path: str, moved: Mapping[str, str]) -> str:
    """Where the file of a folder that gets another name lies then."""
    old = next((folder for folder in moved if path.startswith(folder)), None)
    return path if old is None else moved[old] + path.removeprefix(old)
