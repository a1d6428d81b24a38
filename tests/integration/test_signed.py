"""What is served is what was signed, on a real registry and a real store."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from app.core.errors import Corrupt, Unavailable
from app.core.jobs import Lease, NewJob
from app.core.resources import ModelVersion
from app.core.version_folder import MANIFEST
from app.registry.ledger import SqlLedger
from app.registry.models import ModelReader, ModelWriter
from app.registry.tables import FileRow
from app.services import finish_job as finishing
from app.services import serve_version as serving
from app.services.add_variants import add_variants
from app.services.finish_job import finish_job
from app.services.keep_files import keep_folder
from app.services.local_copies import remove_unused
from app.services.platform import Platform
from app.services.serve_version import choose_variant, serve_version
from app.services.sign_files import sign_variants, sign_version
from app.settings import Settings
from app.store.signing import SigningKey

FILES = {"model.onnx": b"graph", "signature.json": b"{}", "golden.json": b"{}", "card.json": b"{}"}


def variant(name: str, path: str) -> dict[str, Any]:
    entry = {"name": name, "state": "accepted", "reason": None, "recipe": {}, "path": path, "bytes": 5, "metrics": {}}
    return entry | {"latency": {"items_per_s": 1.0}}


RESULT: dict[str, Any] = {
    "task": "regression", "family": "gbdt", "main_metric": "rmse", "metrics": {}, "signature": {}, "schema": {},
    "variants": [variant("fp32", "model.onnx")],
}  # fmt: skip


async def make(platform: Platform, folder: Path, job: str = "job-1") -> ModelVersion:
    folder.mkdir()
    for path, content in FILES.items():
        (folder / path).write_bytes(content)
    lease = Lease(job, 1, "train", {"model": "m"}, 60, 1000)
    files = await sign_version(platform, lease, await keep_folder(platform, folder), folder)
    async with platform.database.write() as session:
        return await ModelWriter(session).create_version(
            "m", RESULT, lineage={"job": job}, digest=job[-1] * 64, files=files, dataset_version_id=None, job_id=None
        )


async def serve(platform: Platform, number: int, name: str = "fp32") -> Path:
    async with platform.database.read() as session:
        version = await ModelReader(session).version("m", number)
    return (await serve_version(platform, version, choose_variant(version, name, platform.settings.serving.provider)))[
        1
    ]


async def exchange(platform: Platform, version: ModelVersion, path: str, other: str) -> None:
    """Let the registry name another content, as somebody who can write to it could."""
    async with platform.database.write() as session:
        await session.execute(
            update(FileRow).where(FileRow.owner == version.id, FileRow.path == path).values(sha256=other)
        )


async def test_a_signed_version_is_served(platform: Platform, tmp_path: Path) -> None:
    await make(platform, tmp_path / "out")
    assert (await serve(platform, 1)).read_bytes() == FILES["model.onnx"]


async def test_an_old_copy_is_not_removed_while_it_is_looked_at(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(platform, tmp_path / "out")
    os.utime((await serve(platform, 1)).parent, (0, 0))
    missing = serving._missing

    def slowly(*wanted: Any) -> Any:
        found = missing(*wanted)
        remove_unused(platform.scratch, set())  # as any gateway does after each look at the endpoints
        return found

    monkeypatch.setattr(serving, "_missing", slowly)
    assert (await serve(platform, 1)).read_bytes() == FILES["model.onnx"]


async def test_a_job_that_is_finished_again_after_an_outage_is_signed_once(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry goes away in the very last transaction, when the manifest is there already."""
    ledger = SqlLedger(platform.database)
    job = await ledger.enqueue(NewJob(kind="import", spec={"model": "m", "upload": "upload"}))
    lease = await ledger.claim(job.id, "w", 30.0)
    assert lease is not None
    (output := tmp_path / "out").mkdir()
    for path, content in FILES.items():
        (output / path).write_bytes(content)
    result = {**RESULT, "seed": 0, "environment": {}}

    async def away(*_: object) -> None:
        raise Unavailable("the registry is away")

    with monkeypatch.context() as patched:
        patched.setitem(finishing._FINISHERS, "import", away)
        with pytest.raises(Unavailable):
            await finish_job(platform, lease, result, output)
    assert (output / MANIFEST).exists()
    assert await finish_job(platform, lease, result, output)
    assert (await serve(platform, 1)).read_bytes() == FILES["model.onnx"]


async def test_a_file_that_was_exchanged_is_refused(platform: Platform, tmp_path: Path) -> None:
    version = await make(platform, tmp_path / "out")
    digests = {file.path: file.sha256 for file in version.files}
    await exchange(platform, version, "model.onnx", digests["card.json"])
    with pytest.raises(Corrupt, match=r"model\.onnx of 'm@1' is not what was signed"):
        await serve(platform, 1)


async def test_a_manifest_of_another_version_is_refused(platform: Platform, tmp_path: Path) -> None:
    first, second = await make(platform, tmp_path / "one", "job-1"), await make(platform, tmp_path / "two", "job-2")
    manifest = next(file.sha256 for file in first.files if file.path == "manifest.json")
    await exchange(platform, second, "manifest.json", manifest)
    with pytest.raises(Corrupt, match="belongs to another version"):
        await serve(platform, 2)


async def test_a_version_without_a_manifest_is_refused(platform: Platform, tmp_path: Path) -> None:
    version = await make(platform, tmp_path / "out")
    async with platform.database.write() as session:
        gone = update(FileRow).where(FileRow.owner == version.id, FileRow.path == "manifest.json")
        await session.execute(gone.values(path="elsewhere.json"))
    with pytest.raises(Corrupt, match=r"has no manifest\.json"):
        await serve(platform, 1)


async def test_a_key_that_is_not_trusted(platform: Platform, tmp_path: Path) -> None:
    await make(platform, tmp_path / "out")
    old = SigningKey(tmp_path / "signing.key").public()
    (tmp_path / "signing.key").unlink()
    with pytest.raises(Corrupt, match="not trusted"):
        await serve(platform, 1)
    trusting = Platform(
        Settings.model_validate({"data_dir": tmp_path, "signing": {"trusted_keys": old}}),
        platform.database,
        platform.wake,
        platform.store,
    )
    assert (await serve(trusting, 1)).exists()


async def test_what_changed_is_named(platform: Platform, tmp_path: Path) -> None:
    version = await make(platform, tmp_path / "out")
    digests = {file.path: file.sha256 for file in version.files}
    for path, words in (
        ("model.onnx", r"'m@1': model\.onnx: the stored content .* has changed on disk"),
        ("manifest.json", r"'m@1': manifest\.json was changed after it was signed"),
    ):
        file = next(tmp_path.rglob(digests[path]))
        content = file.read_bytes()
        file.chmod(0o644)
        file.write_bytes(content.replace(b"graph", b"grape").replace(b'"m"', b'"n"'))
        with pytest.raises(Corrupt, match=words):
            await serve(platform, 1)


@pytest.mark.parametrize("there", ["a folder", "a folder instead of all", "a file instead of all", "a loop"])
async def test_a_copy_that_is_no_file_is_replaced(platform: Platform, tmp_path: Path, there: str) -> None:
    await make(platform, tmp_path / "out")
    copy = await serve(platform, 1)
    if there == "a file instead of all":
        shutil.rmtree(copy.parent)
        copy.parent.write_bytes(b"")
    elif there == "a loop":
        copy.unlink()
        copy.symlink_to(copy)
    else:
        copy.unlink()
        (copy / "inner" / "more").mkdir(parents=True)
        if there == "a folder instead of all":
            (copy.parent / "golden.json").unlink()
            (copy.parent / "golden.json").mkdir()
    assert (await serve(platform, 1)).read_bytes() == FILES["model.onnx"]


async def test_a_variant_that_was_added_and_renamed(platform: Platform, tmp_path: Path) -> None:
    await make(platform, tmp_path / "out")
    for number, content in enumerate((b"small", b"smaller")):
        folder = tmp_path / f"compressed-{number}"
        (folder / "variants" / "int8").mkdir(parents=True)
        (folder / "variants" / "int8" / "model.onnx").write_bytes(content)
        lease = Lease(f"job-{number}", 1, "compress", {"model": "m", "version": 1}, 60, 1000)
        files = await sign_variants(platform, lease, await keep_folder(platform, folder), folder)
        async with platform.database.write() as session:
            await add_variants(session, "m", 1, [variant("int8", "variants/int8/model.onnx")], files)
    assert (await serve(platform, 1, "int8")).read_bytes() == b"small"
    assert (await serve(platform, 1, "int8-2")).read_bytes() == b"smaller"
