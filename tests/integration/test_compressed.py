"""What a compress job leaves among a version's files, on a real registry and a real store."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.core.jobs import Lease, NewJob
from app.core.resources import ModelVersion
from app.core.version_folder import COMPRESSION, COMPRESSION_PAGE, EVALUATIONS, MANIFEST
from app.registry.ledger import SqlLedger
from app.registry.models import ModelReader
from app.services import finish_job as finishing
from app.services.finish_job import finish_job
from app.services.platform import Platform
from app.services.sign_files import check_signed
from tests.integration.test_signed import make

PAGE = "<html><body>\n<h1>Compression</h1><b>distilled</b></body></html>"


def variant(name: str, size: int) -> dict[str, Any]:
    entry = {"name": name, "state": "accepted", "reason": None, "recipe": {}, "path": f"variants/{name}/model.onnx"}
    return entry | {"bytes": size, "metrics": {}, "latency": {"items_per_s": 1.0, "host": "here (avx2)"}}


async def leased(platform: Platform) -> Lease:
    ledger = SqlLedger(platform.database)
    job = await ledger.enqueue(NewJob(kind="compress", spec={"model": "m", "version": 1}))
    lease = await ledger.claim(job.id, "worker", 60.0)
    assert lease is not None
    return lease


def written(folder: Path, lease: Lease, models: dict[str, bytes]) -> dict[str, Any]:
    """A job's output: variants under these names, and the report beside them; its result is returned."""
    for name, content in models.items():
        (folder / "variants" / name).mkdir(parents=True)
        (folder / "variants" / name / "model.onnx").write_bytes(content)
    variants = [variant(name, len(content)) for name, content in models.items()]
    names = list(models)
    search: dict[str, Any] = {
        "winner": names[0], "nearest": None, "front": names, "candidates": [{"variant": name} for name in names],
    }  # fmt: skip
    own = folder / EVALUATIONS / lease.job_id
    own.mkdir(parents=True)
    (own / COMPRESSION).write_text(json.dumps(search | {"variants": variants}))
    (own / COMPRESSION_PAGE).write_text(PAGE)
    return {"variants": variants, "compression": search}


async def version(platform: Platform) -> ModelVersion:
    async with platform.database.read() as session:
        return await ModelReader(session).version("m", 1)


async def content(platform: Platform, found: ModelVersion, path: str) -> str:
    [digest] = [file.sha256 for file in found.files if file.path == path]
    return b"".join([chunk async for chunk in platform.store.read(digest)]).decode()


async def report_of(platform: Platform, lease: Lease) -> tuple[dict[str, Any], str]:
    found = await version(platform)
    own = f"{EVALUATIONS}/{lease.job_id}"
    signed = [file for file in found.files if file.path.startswith(("variants/", own))]
    await check_signed(platform, found, [file for file in signed if not file.path.endswith(MANIFEST)])
    told = json.loads(await content(platform, found, f"{own}/{COMPRESSION}"))
    return told, await content(platform, found, f"{own}/{COMPRESSION_PAGE}")


async def test_a_job_that_ends_while_another_has_taken_its_names_tells_the_names_that_it_has_got(
    platform: Platform, tmp_path: Path
) -> None:
    await make(platform, tmp_path / "trained")
    first, second = [await leased(platform) for _ in range(2)]
    results = [
        written(tmp_path / "first", first, {"optimized": b"same", "distilled": b"one"}),
        written(tmp_path / "second", second, {"distilled": b"another", "optimized": b"same"}),
    ]
    assert await finish_job(platform, first, results[0], tmp_path / "first")
    before = await report_of(platform, first)
    assert before[0]["front"] == ["optimized", "distilled"]
    assert before[1] == PAGE
    assert await finish_job(platform, second, results[1], tmp_path / "second")
    told, page = await report_of(platform, second)
    assert (told["winner"], told["front"]) == ("distilled-2", ["distilled-2", "optimized"])
    assert [one["variant"] for one in told["candidates"]] == told["front"]
    assert [one["path"] for one in told["variants"]] == [f"variants/{name}/model.onnx" for name in told["front"]]
    assert "distilled is distilled-2." in page
    assert "optimized is" not in page
    assert await report_of(platform, first) == before  # a later search takes nothing from it
    shown = (await version(platform)).variants
    assert sorted(one.name for one in shown) == ["distilled", "distilled-2", "fp32", "optimized"]


async def test_names_that_are_taken_at_the_last_moment_are_looked_up_again(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(platform, tmp_path / "trained")
    first, second = [await leased(platform) for _ in range(2)]
    results = [
        written(tmp_path / name, lease, {"distilled": name.encode()})
        for name, lease in (("first", first), ("second", second))
    ]
    look, quicker = finishing.name_report, [first]

    async def late(*given: Any) -> Any:
        found = await look(*given)
        if quicker:
            assert await finish_job(platform, quicker.pop(), results[0], tmp_path / "first")
        return found

    monkeypatch.setattr(finishing, "name_report", late)
    assert await finish_job(platform, second, results[1], tmp_path / "second")
    told, page = await report_of(platform, second)
    assert told["front"] == ["distilled-2"]
    assert page.count("distilled is distilled-2.") == 1
    assert (await report_of(platform, first))[0]["front"] == ["distilled"]
