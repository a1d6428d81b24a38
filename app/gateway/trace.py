"""W3C trace context (https://www.w3.org/TR/trace-context/): a request with a valid `traceparent` continues that trace.

The answer names the trace with a span of our own, and so do the log lines of failures, by which the caller's tracing
system and our log can be laid side by side. Where a collector is configured, the span is exported too, and requests
that bring no trace begin one.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from app.telemetry.spans import Attributes, Exporter, Request

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_KNOWN_FLAGS = 0x03  # sampled and random-trace-id; a version that we do not know may give others a meaning
_SAMPLED = 0x01
_SERVER_ERROR = 500


@dataclass(frozen=True, slots=True)
class Trace:
    """The trace that a request belongs to, our span in it, and the caller's if it began the trace."""

    id: str
    span: str
    flags: int
    parent: str | None = None

    @property
    def header(self) -> bytes:
        """The `traceparent` of the answer."""
        return f"00-{self.id}-{self.span}-{self.flags:02x}".encode()


def continue_trace(traceparent: bytes) -> Trace | None:
    """The trace that a `traceparent` header names, with a new span; None if the header is not valid."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    version, trace, parent, flags, more = match.groups()
    if version == b"ff" or (version == b"00" and more) or not trace.strip(b"0") or not parent.strip(b"0"):
        return None
    return Trace(trace.decode(), os.urandom(8).hex(), int(flags, 16) & _KNOWN_FLAGS, parent.decode())


def begin_trace(exporter: Exporter) -> Trace:
    """A trace of our own, for a request that brought none."""
    return Trace(os.urandom(16).hex(), os.urandom(8).hex(), _SAMPLED if exporter.sample() else 0)


def export(
    exporter: Exporter,
    trace: Trace,
    name: str,
    seconds: float,
    status: int,
    attributes: Attributes,
    phases: Sequence[tuple[str, float]] = (),
) -> None:
    """Export an answered HTTP request if its trace is sampled; a server's error marks it as failed."""
    told = {**attributes, "http.response.status_code": status}
    export_call(exporter, trace, name, seconds, told, phases, failed=status >= _SERVER_ERROR)


def export_call(
    exporter: Exporter,
    trace: Trace,
    name: str,
    seconds: float,
    attributes: Attributes,
    phases: Sequence[tuple[str, float]] = (),
    *,
    failed: bool,
) -> None:
    """Export what was answered by any protocol, if its trace is sampled."""
    if trace.flags & _SAMPLED:
        exporter.export(Request(name, trace.id, trace.span, trace.parent, seconds, attributes, failed, phases))


def name_request(request_id: str, trace: Trace | None) -> str:
    """How log lines name a request."""
    return f"request={request_id} trace={trace.id}" if trace else f"request={request_id}"
