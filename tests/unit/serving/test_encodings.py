"""Large bodies are packed and unpacked beside the event loop, small ones on it."""

import asyncio
import gzip
import secrets
import zlib
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from app.core.errors import Malformed, PayloadTooLarge
from app.gateway.predict.encodings import pack, unpack

LIMIT = 64 << 20
LARGE = secrets.token_bytes(1 << 20) * 16
PACKERS = {b"gzip": gzip.compress, b"deflate": zlib.compress}
UNPACKERS = {b"gzip": gzip.decompress, b"deflate": zlib.decompress}


async def turns(work: Coroutine[Any, Any, Any]) -> tuple[Any, int]:
    """What `work` gives or raises, and how often the event loop turned meanwhile."""
    task = asyncio.ensure_future(work)
    count = 0
    while not task.done():
        await asyncio.sleep(0)
        count += 1
    return task.exception() or task.result(), count


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate"])
async def test_the_loop_turns_while_a_large_body_is_unpacked(encoding: bytes):
    plain, count = await turns(unpack(PACKERS[encoding](LARGE, 1), encoding, LIMIT))
    assert plain == LARGE
    assert count > 20


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1])
async def test_the_loop_turns_while_few_bytes_become_many(size: int):
    bomb = gzip.compress(bytes(size))
    assert len(bomb) < 100_000
    got, count = await turns(unpack(bomb, b"gzip", LIMIT))
    assert isinstance(got, PayloadTooLarge) if size > LIMIT else len(got) == size
    assert count > 20


async def test_the_loop_turns_while_a_large_body_is_packed():
    packed, count = await turns(pack(LARGE, b"gzip"))
    assert gzip.decompress(packed) == LARGE
    assert count > 20


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate"])
async def test_small_bodies_need_no_thread(encoding: bytes):
    text = b'{"instances": [{"age": 41}]}'
    packed, packing = await turns(pack(text, encoding))
    plain, unpacking = await turns(unpack(packed, encoding, LIMIT))
    assert (plain, UNPACKERS[encoding](packed)) == (text, text)
    assert (packing, unpacking) == (1, 1)


@pytest.mark.parametrize("padding", [b"", LARGE[:5000]])
@pytest.mark.parametrize(
    "spoil", [lambda packed: packed[:-9], lambda packed: packed + b"more", lambda packed: b"x" + packed]
)
async def test_what_is_not_one_whole_stream_is_malformed(padding: bytes, spoil: Callable[[bytes], bytes]):
    for encoding, packer in PACKERS.items():
        with pytest.raises(Malformed):
            await unpack(spoil(packer(b"{}" + padding)), encoding, LIMIT)
