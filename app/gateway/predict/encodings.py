"""gzip and deflate (the zlib format) of request and answer bodies; what takes long is done in a thread."""

import asyncio
import zlib
from concurrent.futures import ThreadPoolExecutor

from app.core.errors import Malformed, PayloadTooLarge
from app.serving.types import Pieces

_WBITS = {b"gzip": 31, b"deflate": 15}
# Bytes that are packed on the event loop: about a millisecond.
_PACKED_INLINE = 64 * 1024
# Bytes that are unpacked there. They may become a thousand times as many, which takes about a millisecond, too.
_UNPACKED_INLINE = 1024
_LEVEL = 1
# Few, since what a body becomes cannot be counted before.
_unpackers = ThreadPoolExecutor(2, thread_name_prefix="unpack")


async def unpack(body: bytes, encoding: bytes, limit: int) -> bytes:
    """Undo `encoding`, a Content-Encoding. PayloadTooLarge beyond `limit` bytes, Malformed if that is not possible."""
    encoding = encoding.strip().lower()
    if encoding == b"identity":
        return body
    if encoding not in _WBITS:
        raise Malformed.at("Content-Encoding", msg="must be gzip, deflate or identity")
    if len(body) <= _UNPACKED_INLINE:
        return _unpack(body, encoding, limit)
    return await asyncio.get_running_loop().run_in_executor(_unpackers, _unpack, body, encoding, limit)


def _unpack(body: bytes, encoding: bytes, limit: int) -> bytes:
    inflater = zlib.decompressobj(_WBITS[encoding])
    try:
        plain = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise Malformed(f"the body is not {encoding.decode()}: {error}") from None
    if len(plain) > limit:
        raise too_large(limit)
    if not inflater.eof or inflater.unused_data:
        raise Malformed(f"the body is not one whole {encoding.decode()} stream")
    return plain


async def pack(body: bytes, encoding: bytes) -> bytes:
    """`body` in an encoding that `negotiate` gave."""
    if len(body) <= _PACKED_INLINE:
        return zlib.compress(body, _LEVEL, _WBITS[encoding])
    return await asyncio.to_thread(zlib.compress, body, _LEVEL, _WBITS[encoding])


async def pack_pieces(pieces: Pieces, encoding: bytes) -> Pieces:
    """As `pack`, of what is large; the pieces are let go of on the way."""
    return await asyncio.to_thread(_pack_pieces, pieces, encoding)


def _pack_pieces(pieces: Pieces, encoding: bytes) -> Pieces:
    packer = zlib.compressobj(_LEVEL, wbits=_WBITS[encoding])
    packed = Pieces()
    pieces.reverse()
    while pieces:
        packed.append(packer.compress(pieces.pop()))
    packed.append(packer.flush())
    return packed


def negotiate(accepted: bytes) -> bytes | None:
    """The best of gzip and deflate that an Accept-Encoding header allows; None for neither."""
    best, best_weight = None, 0.0
    for choice in accepted.lower().replace(b" ", b"").split(b","):
        name, _, weight = choice.partition(b";q=")
        try:
            value = float(weight) if weight else 1.0
        except ValueError:
            continue
        if name in _WBITS and value > best_weight:
            best, best_weight = name, value
    return best


def too_large(limit: int) -> PayloadTooLarge:
    """The error of a body of more than `limit` bytes."""
    return PayloadTooLarge(f"the body is larger than {limit >> 20} MiB (AIMASS_SERVING_MAX_BODY_MB)")
