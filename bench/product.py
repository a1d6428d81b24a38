"""The product as the serving benchmark measures it: a platform that `aimass up` started, with two endpoints.

The tabular model is uploaded, trained and deployed through the public API. The CNN has random weights, so it is kept
and registered by the services that keep a worker's output, and deployed through the API.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

from app.core.jobs import Lease
from app.registry.models import ModelWriter
from app.services.finish_job import digest_of
from app.services.keep_files import keep_folder
from app.services.platform import open_platform
from app.services.sign_files import sign_version
from app.settings import Settings
from bench.load import Server
from tests.support.jobs import TUMOURS
from tests.support.platform import Platform, breast_cancer_csv

TABLE, CNN = "table", "cnn"


def train_table(platform: Platform, folder: Path) -> list[dict[str, float]]:
    """Train the model, serve it, put its files into `folder`; rows as a client would send them."""
    content = breast_cancer_csv()
    platform.upload("tumours", content)
    spec = {**TUMOURS, "model": TABLE, "family": "mlp", "deploy": {"endpoint": TABLE}}
    platform.wait(platform.submit(**spec)["id"], "succeeded")
    folder.mkdir(parents=True)
    files = f"/api/v1/models/{TABLE}/versions/1/files"
    for name in ("signature.json", "model.onnx"):
        (folder / name).write_bytes(platform.client.get(f"{files}/{name}").raise_for_status().content)
    header, *lines = [line.split(",") for line in content.decode().splitlines()]
    return [dict(zip(header[:-1], map(float, line[:-1]), strict=True)) for line in lines[:64]]


def deploy_cnn(platform: Platform, folder: Path) -> None:
    """Register the version folder as a worker's output would be, and serve it."""
    asyncio.run(_register(platform.data_dir, folder))
    platform.call("PUT", f"/api/v1/endpoints/{CNN}", json={"model": CNN, "routes": [{"version": 1}]})


async def _register(data_dir: Path, folder: Path) -> None:
    platform = open_platform(Settings(data_dir=data_dir))
    try:
        made_by = Lease("bench", 1, "train", {"model": CNN}, 0, 0)
        files = await sign_version(platform, made_by, await keep_folder(platform, folder), folder)
        async with platform.database.write() as session:
            await ModelWriter(session).create_version(
                CNN,
                _measured(folder),
                lineage={"job": made_by.job_id},
                digest=digest_of(files),
                files=files,
                dataset_version_id=None,
                job_id=None,
            )
    finally:
        await platform.close()


def _measured(folder: Path) -> dict[str, Any]:
    """The part of a train job's result that a version is made of."""
    base = {
        "name": "fp32",
        "state": "accepted",
        "reason": None,
        "recipe": {},
        "path": "model.onnx",
        "bytes": (folder / "model.onnx").stat().st_size,
        "metrics": {},
        "latency": {},
    }
    signature = json.loads((folder / "signature.json").read_text())
    about = {"task": "classification", "family": "cnn", "main_metric": "accuracy", "metrics": {}, "schema": {}}
    return {**about, "signature": signature, "variants": [base]}


def gateway(platform: Platform) -> Server:
    """The platform's one gateway process."""
    [process] = platform.processes("app.gateway.main")
    assert platform.url is not None
    return Server(platform.url, process)
