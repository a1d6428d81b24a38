"""End a job whose child has returned: its outputs become real in the transaction that finishes it, or not at all."""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from app.core.errors import NotFound, Unavailable
from app.core.jobs import Lease
from app.core.resources import ModelVersion, StoredFile
from app.core.version_folder import MANIFEST
from app.queue.ports import ENDPOINT_CHANNEL
from app.registry.datasets import DatasetReader, DatasetWriter
from app.registry.endpoints import EndpointWriter
from app.registry.job_ledger import JobLedger
from app.registry.models import ModelWriter
from app.registry.session import WriteSession
from app.services.add_variants import add_variants
from app.services.announce import announce_due, tell_watchers
from app.services.deploy_version import deploy_version
from app.services.keep_files import keep_folder
from app.services.name_report import name_report, names_between, renamed
from app.services.platform import Platform
from app.services.sign_files import sign_variants, sign_version
from app.specs.jobs import parse_dataset


async def finish_job(platform: Platform, lease: Lease, result: dict[str, Any], output: Path) -> bool:
    """Store the outputs and finish the job. False, and nothing becomes real, when the attempt's lease was lost.

    Unavailable while the registry or the store is away; the same call may succeed later.
    """
    async with platform.database.write() as session:  # asked again during an outage, nothing is stored in vain
        if not await JobLedger(session).holds(lease.job_id, lease.attempt):
            return False
    kept = await keep_folder(platform, output)
    if lease.kind in _SIGNERS:  # an earlier call may have come so far, and they are made anew
        kept = [file for file in kept if PurePosixPath(file.path).name != MANIFEST]
    while True:
        with contextlib.suppress(_NamesTaken):
            return await _finish(platform, lease, result, kept, output)


class _NamesTaken(Exception):
    """Another job has added variants since the names of this one's were looked up."""


async def _finish(
    platform: Platform, lease: Lease, result: dict[str, Any], kept: Sequence[StoredFile], output: Path
) -> bool:
    names, files = None, list(kept)
    if lease.kind == "compress":
        with contextlib.suppress(NotFound):  # the version was deleted, which the transaction says in its turn
            names, files = await name_report(platform, lease, result, files, output)
    if sign := _SIGNERS.get(lease.kind):
        files = await sign(platform, lease, files, output)
    async with platform.database.write() as session:
        ledger = JobLedger(session)
        if not await ledger.holds(lease.job_id, lease.attempt):
            return False
        shown = await _FINISHERS[lease.kind](session, lease, result, files)
        if names is not None and names != [variant["name"] for variant in shown["variants"]]:
            raise _NamesTaken
        if not await ledger.succeed(lease.job_id, lease.attempt, shown):
            raise RuntimeError(f"job '{lease.job_id}' left its state while its row was locked")
    for name in [shown["endpoint"]] if "endpoint" in shown else shown.get("renewed", ()):
        with contextlib.suppress(Unavailable):  # gateways look at the registry every few seconds all the same
            await platform.wake.publish(ENDPOINT_CHANNEL, name)
    await tell_watchers(platform, lease.job_id)
    await announce_due(platform)
    return True


async def _finish_ingest(
    session: WriteSession, lease: Lease, result: dict[str, Any], files: Sequence[StoredFile]
) -> dict[str, Any]:
    await DatasetWriter(session).ready(lease.job_id, result, list(files))
    return {"dataset": lease.spec["dataset"], "rows": result["rows"], "rejected_rows": result["rejected_count"]}


async def _finish_train(
    session: WriteSession, lease: Lease, result: dict[str, Any], files: Sequence[StoredFile]
) -> dict[str, Any]:
    spec = lease.spec
    name, number = parse_dataset(spec["dataset"])
    try:
        dataset_id: str | None = (await DatasetReader(session).version(name, number)).id
    except NotFound:  # deleted while it was being trained on; the model stands on its own
        dataset_id = None
    version = await _make_version(session, lease, result, files, dataset_id)
    shown: dict[str, Any] = {"model": version.model, "version": version.version, "metrics": version.metrics}
    if spec.get("deploy"):
        shown |= await deploy_version(session, spec["deploy"]["endpoint"], version)
    return shown


async def _finish_import(
    session: WriteSession, lease: Lease, result: dict[str, Any], files: Sequence[StoredFile]
) -> dict[str, Any]:
    version = await _make_version(session, lease, result, files, None)
    return {"model": version.model, "version": version.version}


async def _make_version(
    session: WriteSession, lease: Lease, result: dict[str, Any], files: Sequence[StoredFile], dataset_id: str | None
) -> ModelVersion:
    lineage = {
        "dataset": lease.spec.get("dataset"),
        "job": lease.job_id,
        "parent": None,
        "seed": result["seed"],
        "environment": result["environment"],
    }
    return await ModelWriter(session).create_version(
        lease.spec["model"],
        result,
        lineage=lineage,
        digest=digest_of(files),
        files=files,
        dataset_version_id=dataset_id,
        job_id=lease.job_id,
    )


async def _finish_compress(
    session: WriteSession, lease: Lease, result: dict[str, Any], files: Sequence[StoredFile]
) -> dict[str, Any]:
    model, number = lease.spec["model"], lease.spec["version"]
    variants = await add_variants(session, model, number, result["variants"], files)
    found = {**result, "model": model, "version": number, "variants": variants}
    if search := result.get("compression"):
        found["compression"] = renamed(search, names_between(result["variants"], variants))
    return found


async def _finish_measure(
    session: WriteSession, lease: Lease, result: dict[str, Any], _files: Sequence[StoredFile]
) -> dict[str, Any]:
    """Gateways on such hosts may serve other variants now."""
    model, number = lease.spec["model"], lease.spec["version"]
    await ModelWriter(session).measured(model, number, result["host"], result["variants"])
    return {"model": model, "version": number, **result, "renewed": await EndpointWriter(session).renew(model, number)}


async def _finish_report(
    _session: WriteSession, lease: Lease, result: dict[str, Any], _files: Sequence[StoredFile]
) -> dict[str, Any]:
    """What the job found is its result; nothing of the version changes."""
    return {"model": lease.spec["model"], "version": lease.spec["version"], **result}


async def _finish_evaluate(
    session: WriteSession, lease: Lease, result: dict[str, Any], files: Sequence[StoredFile]
) -> dict[str, Any]:
    """The report goes to the files of the version, unless that was deleted meanwhile."""
    model, number = lease.spec["model"], lease.spec["version"]
    with contextlib.suppress(NotFound):
        await ModelWriter(session).hold(model, number)
        await ModelWriter(session).add_variants(model, number, [], files)
    return {"model": model, "version": number, **result}


_FINISHERS = {
    "ingest": _finish_ingest,
    "train": _finish_train,
    "compress": _finish_compress,
    "evaluate": _finish_evaluate,
    "measure": _finish_measure,
    "reproduce": _finish_report,
    "import": _finish_import,
}
_SIGNERS = {"train": sign_version, "import": sign_version, "compress": sign_variants}


def digest_of(files: Sequence[StoredFile]) -> str:
    """One SHA-256 for a folder: of the sorted (path, content digest) pairs, less the manifest, which names the job."""
    pairs = sorted((file.path, file.sha256) for file in files if file.path != MANIFEST)
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
