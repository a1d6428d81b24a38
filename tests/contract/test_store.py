"""The store's promises, of a local folder and of an S3 bucket (a real HTTP server that speaks S3)."""

import asyncio
import hashlib
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import boto3
import httpx
import psutil
import pytest

from app.core.errors import Corrupt, NotFound
from app.store.local import LocalStore
from app.store.ports import CHUNK_BYTES, Store
from app.store.s3 import S3Store
from tests.support.servers import wait_until


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # A process of its own, so that what it holds is not counted as ours.
    command = [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    names = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    wait_until(lambda: _answers(endpoint), 30, "the S3 server starts")
    yield endpoint
    server.kill()
    server.wait()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


def _answers(endpoint: str) -> bool:
    try:
        return httpx.get(endpoint).is_success
    except httpx.HTTPError:
        return False


@pytest.fixture(params=["local", "s3"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    made: Store
    if request.param == "local":
        made = LocalStore(tmp_path / "store")
    else:
        endpoint = request.getfixturevalue("s3_endpoint")
        bucket = f"b-{secrets.token_hex(4)}"
        boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket=bucket)
        made = S3Store(bucket, "some/prefix", endpoint=endpoint)
    yield made
    await made.close()


async def put(store: Store, *chunks: bytes) -> str:
    writer = await store.writer()
    for chunk in chunks:
        await writer.write(chunk)
    return await writer.commit()


async def read(store: Store, sha256: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in store.read(sha256, start, end)])


class TestStore:
    async def test_content_is_found_by_its_digest(self, store: Store) -> None:
        data = secrets.token_bytes(3 * CHUNK_BYTES + 17)
        digest = await put(store, data[:5], data[5:])
        assert digest == hashlib.sha256(data).hexdigest()
        assert await store.exists(digest)
        assert await store.size(digest) == len(data)
        assert await read(store, digest) == data

    async def test_ranges(self, store: Store) -> None:
        data = bytes(range(256)) * 8192
        digest = await put(store, data)
        assert await read(store, digest, 100, 110) == data[100:110]
        assert await read(store, digest, CHUNK_BYTES - 3, CHUNK_BYTES + 3) == data[CHUNK_BYTES - 3 : CHUNK_BYTES + 3]
        assert await read(store, digest, 5, 5) == b""

    async def test_the_empty_file(self, store: Store) -> None:
        digest = await put(store)
        assert digest == hashlib.sha256(b"").hexdigest()
        assert await read(store, digest) == b""

    async def test_nothing_can_be_read_before_commit_or_after_abort(self, store: Store) -> None:
        writer = await store.writer()
        await writer.write(b"half")
        digest = writer.digest
        assert not await store.exists(digest)
        await writer.abort()
        assert not await store.exists(digest)

    async def test_the_same_content_twice_is_one(self, store: Store) -> None:
        first, second = await asyncio.gather(put(store, b"same"), put(store, b"same"))
        assert first == second
        await (await store.writer()).abort()
        assert await read(store, first) == b"same"

    async def test_what_is_not_there_is_not_found(self, store: Store, tmp_path: Path) -> None:
        missing = "0" * 64
        assert not await store.exists(missing)
        with pytest.raises(NotFound):
            await store.size(missing)
        with pytest.raises(NotFound):
            await read(store, missing)
        with pytest.raises(NotFound):
            await store.fetch(missing, tmp_path / "x")
        assert not (tmp_path / "x").exists()
        await store.delete(missing)

    @pytest.mark.parametrize("name", ["../../etc/passwd", "A" * 64, "0" * 63, "", "0" * 64 + "\n"])
    async def test_only_digests_name_content(self, store: Store, name: str) -> None:
        with pytest.raises(NotFound, match="is not a SHA-256 digest"):
            await store.exists(name)

    async def test_fetch_makes_a_file_and_folders(self, store: Store, tmp_path: Path) -> None:
        digest = await put(store, b"data")
        await store.fetch(digest, tmp_path / "a" / "b" / "file")
        assert (tmp_path / "a" / "b" / "file").read_bytes() == b"data"

    async def test_deleted_content_is_gone(self, store: Store) -> None:
        digest = await put(store, b"data")
        await store.delete(digest)
        assert not await store.exists(digest)

    async def test_memory_stays_flat_while_a_large_file_streams(self, store: Store) -> None:
        block = secrets.token_bytes(CHUNK_BYTES)
        process = psutil.Process()
        before = highest = process.memory_info().rss
        writer = await store.writer()
        for number in range(512):
            await writer.write(number.to_bytes(4, "big") + block)
            highest = max(highest, process.memory_info().rss)
        digest = await writer.commit()
        size = 0
        async for chunk in store.read(digest):
            size += len(chunk)
            highest = max(highest, process.memory_info().rss)
        assert size == 512 * (CHUNK_BYTES + 4)
        assert highest - before < 192 * CHUNK_BYTES  # parts that are being sent at once; far below the file


class TestLocalFolder:
    async def test_a_changed_byte_is_corrupt_and_leaves_no_file(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path / "store")
        digest = await put(store, b"data")
        stored = store.path(digest)
        stored.chmod(0o644)
        stored.write_bytes(b"dafa")
        with pytest.raises(Corrupt, match=digest):
            await store.fetch(digest, tmp_path / "x")
        assert not (tmp_path / "x").exists()

    async def test_what_killed_writers_left_is_swept(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path / "store")
        mine = store.temporary()
        dead = mine.with_name(mine.name.replace(f"-{os.getpid()}-", "-4194305-"))  # above the largest process id
        elsewhere, long_ago = mine.with_name("other-1-aa"), mine.with_name("other-1-bb")
        for path in (mine, dead, elsewhere, long_ago):
            path.write_bytes(b"half")
        os.utime(long_ago, (0, 0))
        LocalStore(tmp_path / "store")
        assert sorted(path.name for path in mine.parent.iterdir()) == sorted([mine.name, elsewhere.name])
