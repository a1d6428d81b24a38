"""Identifiers: UUID version 7 (RFC 9562), which sort by the time they were made."""

import secrets
import time
import uuid

NS_PER_MS = 1_000_000


def new_id() -> str:
    """A new UUIDv7 in its canonical text form.

    The 12 bits after the version hold the fraction of the millisecond (RFC 9562, section 6.2, method 3), so that ids
    made by one process sort in the order they were made.
    """
    millis, rest = divmod(time.time_ns(), NS_PER_MS)
    fraction = (rest << 12) // NS_PER_MS
    value = millis << 80 | 0x7 << 76 | fraction << 64 | 0b10 << 62 | secrets.randbits(62)
    return str(uuid.UUID(int=value))
