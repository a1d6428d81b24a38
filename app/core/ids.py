"""Identifiers: UUID version 7 (RFC 9562), which sort by the time they were made."""

import secrets
import time
import uuid


def new_id() -> str:
    """A new UUIDv7 in its canonical text form."""
    millis = time.time_ns() // 1_000_000
    value = (millis & 0xFFFF_FFFF_FFFF) << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76  # version
    value = value & ~(0x3 << 62) | 0x2 << 62  # variant
    return str(uuid.UUID(int=value))
