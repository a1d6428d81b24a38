"""W3C trace context (https://www.w3.org/TR/trace-context/): a request with a valid `traceparent` continues that trace.

Nothing is exported in this release. The answer names the trace with a span of our own, and so do the log lines of
failures, by which the caller's tracing system and our log can be laid side by side.
"""

import os
import re
from dataclasses import dataclass

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_KNOWN_FLAGS = 0x03  # sampled and random-trace-id; a version that we do not know may give others a meaning


@dataclass(frozen=True, slots=True)
class Trace:
    """The trace that a request belongs to, and the `traceparent` of the answer."""

    id: str
    header: bytes


def continue_trace(traceparent: bytes) -> Trace | None:
    """The trace that a `traceparent` header names, with a new span; None if the header is not valid."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    version, trace, parent, flags, more = match.groups()
    if version == b"ff" or (version == b"00" and more) or not trace.strip(b"0") or not parent.strip(b"0"):
        return None
    span, kept = os.urandom(8).hex(), int(flags, 16) & _KNOWN_FLAGS
    return Trace(trace.decode(), b"00-%b-%b-%02x" % (trace, span.encode(), kept))


def name_request(request_id: str, trace: Trace | None) -> str:
    """How log lines name a request."""
    return f"request={request_id} trace={trace.id}" if trace else f"request={request_id}"
