"""Make the folder that a job child works in: its spec, its inputs, its last checkpoint."""

import asyncio
import json
from pathlib import Path
from typing import Any

from app.core.errors import InvalidData, NotFound
from app.core.jobs import Lease
from app.core.resources import StoredFile
from app.core.version_folder import EVALUATIONS
from app.registry.datasets import DatasetReader
from app.registry.files import files_of
from app.registry.jobs import JobReader
from app.registry.models import ModelReader
from app.registry.session import ReadSession
from app.services.keep_files import lay_out, stored
from app.services.platform import Platform
from app.services.upload_dataset import ORIGINAL
from app.specs.data import DATA_FILE, PROFILE_FILE
from app.specs.jobs import parse_dataset
from app.store.disk import writing

FOLDER_VERSION = 1


async def lay_out_job(platform: Platform, lease: Lease, folder: Path, threads: int) -> None:
    """Fill `folder` with job.json, input/, output/ and checkpoint/.

    InvalidData when an input was deleted meanwhile, InputAway when the store lacks one; Unavailable, with the setting's
    name, when the registry, the store or this machine's disk does not do what it should.
    """
    try:
        async with platform.database.read() as session:
            files = await _inputs(session, lease)
            spec = lease.spec | await _known(session, lease)
    except NotFound as error:
        raise InvalidData(f"an input of this job was deleted: {error.detail}") from error
    with writing(disk_of(folder)):
        for name in ("input", "output", "checkpoint"):
            await asyncio.to_thread((folder / name).mkdir, parents=True)
    with stored("an input of this job"):
        await lay_out(platform, files, folder / "input")
    with stored("the checkpoint of this job"):
        await lay_out(platform, lease.checkpoint, folder / "checkpoint")
    limits = {**platform.settings.limit.model_dump(), "threads": threads, "memory_mb": lease.memory_mb}
    weights = platform.settings.worker.weights
    limits["weights"] = str(Path(weights).absolute()) if weights else ""  # the child has another working folder
    job: dict[str, Any] = {
        "version": FOLDER_VERSION,
        "id": lease.job_id,
        "kind": lease.kind,
        "attempt": lease.attempt,
        "spec": {**spec, "limits": limits},
    }
    with writing(disk_of(folder)):
        await asyncio.to_thread((folder / "job.json").write_text, json.dumps(job))


def disk_of(folder: Path) -> str:
    """The disk that jobs work on, as an operator knows it."""
    return f"{folder} (AIMASS_DATA_DIR)"


async def _inputs(session: ReadSession, lease: Lease) -> list[StoredFile]:
    if lease.kind == "ingest":
        return await _dataset(session, lease.spec["dataset"], (ORIGINAL,), "")
    if lease.kind == "import":
        return list(await files_of(session, lease.spec["upload"]))
    if lease.kind == "train":
        return await _dataset(session, lease.spec["dataset"], (DATA_FILE, PROFILE_FILE), "dataset/")
    version = await ModelReader(session).version(lease.spec["model"], lease.spec["version"])
    needed = [file for file in version.files if not file.path.startswith(f"{EVALUATIONS}/")]  # reports for people
    model = [StoredFile(f"model/{file.path}", file.sha256, file.bytes) for file in needed]
    data = lease.spec.get("dataset") or version.lineage["dataset"]
    return model + await _dataset(session, data, (DATA_FILE, PROFILE_FILE), "dataset/")


async def _known(session: ReadSession, lease: Lease) -> dict[str, Any]:
    """What the registry knows beside files: the spec of a training to repeat, budgets of variants to measure."""
    if lease.kind not in {"reproduce", "measure"}:
        return {}
    version = await ModelReader(session).version(lease.spec["model"], lease.spec["version"])
    if lease.kind == "measure":
        return {"budgets": {one.name: one.recipe.get("budget", {}) for one in version.variants}}
    return {"trained": (await JobReader(session).get(version.lineage["job"])).spec}


async def _dataset(session: ReadSession, ref: str, wanted: tuple[str, ...], prefix: str) -> list[StoredFile]:
    name, number = parse_dataset(ref)
    version = await DatasetReader(session).version(name, number)
    found = [StoredFile(prefix + file.path, file.sha256, file.bytes) for file in version.files if file.path in wanted]
    if len(found) != len(wanted):
        raise InvalidData(f"data set '{ref}' is {version.state}; it has no parsed data")
    return found
