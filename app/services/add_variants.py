"""Give a version more variants. One that was accepted never changes, since an endpoint may serve it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from app.core.resources import ModelVersion, StoredFile
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

    A variant with the very same model file keeps its name: it is the old one, measured anew.
    """
    there = {file.path: file.sha256 for file in version.files}
    accepted = {
        variant.name: there.get(variant.path or "") for variant in version.variants if variant.state == "accepted"
    }
    named = {raw["name"] for raw in variants}
    kept: list[Raw] = []
    placed = list(files)
    for raw in variants:
        digest = next((file.sha256 for file in files if file.path == raw["path"]), None)
        name, number = raw["name"], 1
        while (name in accepted and (digest is None or accepted[name] != digest)) or (number > 1 and name in named):
            number += 1
            name = f"{raw['name']}-{number}"
        old, new = f"variants/{raw['name']}/", f"variants/{name}/"
        placed = [replace(f, path=new + f.path.removeprefix(old)) if f.path.startswith(old) else f for f in placed]
        named.add(name)
        path = raw["path"] and new + raw["path"].removeprefix(old)
        kept.append(raw | {"name": name, "path": path})
    return kept, placed
