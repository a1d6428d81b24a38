"""The store's promises, of a local folder and of an S3 bucket (a real HTTP server that speaks S3)."""

import asyncio
import hashlib
import os
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from app.core.errors import Corrupt, NotFound, Unavailable
from app.store.local import LocalStore
from app.store.ports import CHUNK_BYTES, Store, Writer
from app.store.s3 import S3Store
from tests.support.s3 import S3Server


@pytest.fixture(scope="module")
def credentials() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        yield


@pytest.fixture(scope="module")
def s3_server(credentials: None) -> Iterator[S3Server]:  # noqa: ARG001 - the server's clients need them
    server = S3Server()
    yield server
    server.kill()


@pytest.fixture(params=["local", "s3"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    local = request.param == "local"
    made: Store = LocalStore(tmp_path / "store") if local else request.getfixturevalue("s3_server").store()
    yield made
    await made.close()


async def write(writer: Writer, *chunks: bytes) -> str:
    for chunk in chunks:
        await writer.write(chunk)
    return await writer.commit()


async def put(store: Store, *chunks: bytes) -> str:
    writer = await store.writer()
    try:
        return await write(writer, *chunks)
    finally:
        await writer.abort()


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

    async def test_content_that_the_disk_does_not_give_is_unavailable(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path / "store")
        digest = await put(store, b"data")
        store.path(digest).unlink()
        store.path(digest).mkdir()
        with pytest.raises(Unavailable, match=r"AIMASS_STORE_URL.* cannot be read"):
            await read(store, digest)
        with pytest.raises(Unavailable, match=r"AIMASS_STORE_URL.* cannot be read"):
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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("only root may mount a file system")
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=False, capture_output=True)


class TestFullDisk:
    async def test_a_folder_is_unavailable_and_keeps_nothing_of_the_file(self, small_disk: Path) -> None:
        store = LocalStore(small_disk)
        kept = await put(store, b"kept")
        writer = await store.writer()
        with pytest.raises(Unavailable, match=r"AIMASS_STORE_URL.*No space left on device") as full:
            await write(writer, *[bytes(CHUNK_BYTES)] * 3)
        assert full.value.retry_after_s
        with pytest.raises(ValueError, match="closed"):
            await writer.commit()
        await writer.abort()
        assert list((small_disk / "tmp").iterdir()) == []
        assert await read(store, kept) == b"kept"
        await put(store, b"there is room again")

    async def test_what_a_buffer_held_back_is_missed_at_commit(self, small_disk: Path) -> None:
        store = LocalStore(small_disk)
        (small_disk / "full").write_bytes(bytes(CHUNK_BYTES - 8192))  # folders take a page each
        writer = await store.writer()
        with pytest.raises(Unavailable, match="No space left on device"):
            await write(writer, *[bytes(4000)] * 4)
        await writer.abort()
        assert list((small_disk / "tmp").iterdir()) == []

    async def test_a_fetch_leaves_no_half_file(self, store: Store, small_disk: Path) -> None:
        digest = await put(store, bytes(2 * CHUNK_BYTES))
        with pytest.raises(Unavailable, match=r"AIMASS_DATA_DIR.*No space left on device"):
            await store.fetch(digest, small_disk / "models" / "x")
        assert list((small_disk / "models").iterdir()) == []

    async def test_the_spool_of_an_upload_to_a_bucket(
        self, s3_server: S3Server, small_disk: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
        store = s3_server.store()
        writer = await store.writer()
        with pytest.raises(Unavailable, match=r"TMPDIR.*No space left on device"):
            await write(writer, *[bytes(CHUNK_BYTES)] * 3)
        with pytest.raises(ValueError, match="closed"):
            await writer.commit()
        await writer.abort()
        await put(store, b"there is room again")

    def test_a_limit_of_the_process_is_no_internal_error_either(self, tmp_path: Path) -> None:
        script = """
import asyncio, resource, sys
from pathlib import Path
from app.core.errors import Unavailable
from app.store.local import LocalStore

async def main():
    writer = await LocalStore(Path(sys.argv[1])).writer()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    try:
        await writer.write(bytes(2 << 20))
    except Unavailable as error:
        print(error.detail)

asyncio.run(main())
"""
        command = [sys.executable, "-c", script, str(tmp_path)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert "AIMASS_STORE_URL" in done.stdout
        assert "File too large" in done.stdout


class Broken(BaseHTTPRequestHandler):
    """Answers 500 to everything."""

    def _refuse(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(500)
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _refuse  # noqa: N815 - the names that http.server looks for

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def broken_endpoint(credentials: None) -> Iterator[str]:  # noqa: ARG001 - the server's clients need them
    server = ThreadingHTTPServer(("127.0.0.1", 0), Broken)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


async def unavailable(store: Store, digest: str, tmp_path: Path) -> None:
    """Whatever is asked of the store, the answer is one short sentence that names the setting."""
    writer = await store.writer()
    await writer.write(b"new")
    calls = {
        "exists": store.exists(digest),
        "size": store.size(digest),
        "read": read(store, digest),
        "read a range": read(store, digest, 0, 10),
        "fetch": store.fetch(digest, tmp_path / "x"),
        "delete": store.delete(digest),
        "commit": writer.commit(),
    }
    found = dict(zip(calls, await asyncio.gather(*calls.values(), return_exceptions=True), strict=True))
    await writer.abort()
    for call, error in found.items():
        assert isinstance(error, Unavailable), f"{call}: {error!r}"
        assert error.detail.startswith("the store does not answer (AIMASS_STORE_URL, AIMASS_STORE_S3_ENDPOINT): ")
        assert "\n" not in error.detail
        assert error.retry_after_s
    assert not (tmp_path / "x").exists()


class TestBucketInTrouble:
    async def test_a_server_that_is_gone(self, credentials: None, tmp_path: Path) -> None:  # noqa: ARG002 - see above
        server = S3Server()
        store = server.store()
        data = secrets.token_bytes(64 * CHUNK_BYTES)
        digest = await put(store, data)
        stream = store.read(digest)
        first = await anext(stream)
        assert data.startswith(first)
        server.kill()
        with pytest.raises(Unavailable, match="AIMASS_STORE_URL"):
            async for _ in stream:
                pass
        await unavailable(store, digest, tmp_path)

    async def test_a_server_that_fails(self, broken_endpoint: str, tmp_path: Path) -> None:
        await unavailable(S3Store("bucket", endpoint=broken_endpoint), "0" * 64, tmp_path)

    async def test_a_bucket_that_is_missing(self, s3_server: S3Server) -> None:
        store = S3Store("no-such-bucket", endpoint=s3_server.endpoint)
        with pytest.raises(Unavailable, match="AIMASS_STORE_URL"):
            await put(store, b"data")
