"""The product as the serving benchmark measures it: a platform that `aimass up` started, with two endpoints.

Both come in through the public API: the tabular model is trained, the CNN, which has random weights, is imported.
"""

from pathlib import Path

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


def import_cnn(platform: Platform, onnx: Path) -> None:
    """Import the model and serve it."""
    job = platform.call("POST", f"/api/v1/models/{CNN}/versions", 202, files={"model": onnx.read_bytes()})
    platform.wait(job["id"], "succeeded")
    platform.call("PUT", f"/api/v1/endpoints/{CNN}", json={"model": CNN, "routes": [{"version": 1}]})


def gateway(platform: Platform) -> Server:
    """The platform's one gateway process."""
    [process] = platform.processes("app.gateway.main")
    assert platform.url is not None
    return Server(platform.url, process)
