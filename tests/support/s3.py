"""A real server that speaks S3."""

import secrets
import subprocess
import sys
from pathlib import Path

import boto3
import httpx

from app.store.s3 import S3Store
from tests.support.servers import free_port, wait_until


class S3Server:
    """A process of its own, so that what it holds is not counted as ours. Clients need any AWS credentials."""

    def __init__(self) -> None:
        port = free_port()
        command = [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.endpoint = f"http://127.0.0.1:{port}"
        wait_until(lambda: _answers(self.endpoint), 30, "the S3 server starts")

    def bucket(self, **objects: bytes) -> str:
        """A new bucket with these objects; its name."""
        name = f"b-{secrets.token_hex(4)}"
        client = boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1")
        client.create_bucket(Bucket=name)
        for key, body in objects.items():
            client.put_object(Bucket=name, Key=key, Body=body)
        return name

    def store(self) -> S3Store:
        """A store in a new bucket."""
        return S3Store(self.bucket(), "some/prefix", endpoint=self.endpoint)

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.wait()


def _answers(endpoint: str) -> bool:
    try:
        return httpx.get(endpoint).is_success
    except httpx.HTTPError:
        return False
