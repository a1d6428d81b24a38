"""This platform as `aimass up` starts it: keys, metrics and limits on; the models imported and routed by its API."""

from pathlib import Path

from tests.support.platform import Platform
from tests.support.servers import wait_until

_IMPORT_S = 180.0


def deploy(platform: Platform, name: str, onnx: Path) -> None:
    """Import a model, serve it at the endpoint of its name, and wait until it answers."""
    with onnx.open("rb") as file:
        job = platform.call("POST", f"/api/v1/models/{name}/versions", 202, files={"model": file})
    platform.wait(job["id"], "succeeded", _IMPORT_S)
    platform.call("PUT", f"/api/v1/endpoints/{name}", json={"model": name, "routes": [{"version": 1}]})
    ready = f"/v2/models/{name}/ready"
    wait_until(lambda: platform.client.get(ready).is_success, _IMPORT_S, f"{name} is ready")
