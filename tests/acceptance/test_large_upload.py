"""A file far larger than the memory that it may take goes through the gateway into the store and out again."""

import hashlib
import threading
from collections.abc import Iterator

import httpx
import psutil

from tests.support.platform import KEY, Platform

MIB = 1 << 20
SIZE = 512 * MIB
ROOM = 96 * MIB  # what the gateway may grow by: buffers, not the file


def form(digest: "hashlib._Hash") -> Iterator[bytes]:
    """A multipart body of 512 MiB that is a zip by its first bytes, made up as it is sent."""
    yield b'--B\r\ncontent-disposition: form-data; name="name"\r\n\r\nlarge\r\n'
    yield b'--B\r\ncontent-disposition: form-data; name="file"; filename="large.bin"\r\n\r\n'
    for number in range(SIZE // MIB):
        chunk = number.to_bytes(4, "big") * (MIB // 4)
        digest.update(chunk)
        yield chunk
    yield b"\r\n--B--\r\n"


def test_a_large_upload_never_sits_in_memory() -> None:
    with Platform(workers=0) as platform:
        [gateway] = platform.processes("app.gateway.main")
        before = highest = gateway.memory_info().rss
        done = threading.Event()

        def watch() -> None:
            nonlocal highest
            while not done.wait(0.02):
                highest = max(highest, psutil.Process(gateway.pid).memory_info().rss)

        watcher = threading.Thread(target=watch)
        watcher.start()
        digest = hashlib.sha256()
        headers = {"x-api-key": KEY, "content-type": "multipart/form-data; boundary=B"}
        answer = httpx.post(f"{platform.url}/api/v1/datasets", content=form(digest), headers=headers, timeout=120)
        assert answer.status_code == 201, answer.text
        version = answer.json()
        back = hashlib.sha256()
        with platform.client.stream("GET", "/api/v1/datasets/large/versions/1/original") as stream:
            for chunk in stream.iter_bytes():
                back.update(chunk)
        done.set()
        watcher.join()
        assert (version["bytes"], version["sha256"]) == (SIZE, digest.hexdigest())
        assert back.hexdigest() == digest.hexdigest()
        assert highest - before < ROOM
