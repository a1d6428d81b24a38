"""OpenTelemetry spans, exported by OTLP over HTTP where a collector is configured.

Spans are made when a request has been answered, from the times that were taken anyway: nothing is looked up, locked or
sent while it is on its way. The exporter has a thread and a bounded queue of its own; when the collector is away, spans
are dropped and requests are not held up. Import this only where a collector is configured: the library takes memory.
"""

import random
import time
from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from app.settings import TelemetrySettings
from app.telemetry.spans import Attributes, Request

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class Tracing:
    """Exports requests as spans."""

    def __init__(self, settings: TelemetrySettings) -> None:
        exporter = OTLPSpanExporter(settings.otlp_url.rstrip("/") + "/v1/traces", timeout=settings.otlp_timeout_s)
        self._processor = BatchSpanProcessor(exporter)
        self._ratio = settings.trace_ratio
        self._scope = InstrumentationScope("aimass", version("aimass"))
        self._resource = Resource.create({"service.name": "aimass-gateway", "service.version": version("aimass")})

    def sample(self) -> bool:
        """Whether a trace that begins here is to be exported; one that the caller began says so itself."""
        return random.random() < self._ratio  # noqa: S311 - no secret

    def export(self, request: Request) -> None:
        """Queue the request's span, and one for each phase below it."""
        end = time.time_ns()
        at = start = end - round(request.seconds * 1e9)
        trace = int(request.trace, 16)
        context = _context(trace, int(request.span, 16))
        parent = _context(trace, int(request.parent, 16), remote=True) if request.parent else None
        for name, seconds in request.phases:
            until = min(end, at + round(seconds * 1e9))
            self._emit(name, _context(trace, random.getrandbits(64) or 1), context, at, until)
            at = until
        status = Status(StatusCode.ERROR if request.failed else StatusCode.UNSET)
        self._emit(request.name, context, parent, start, end, request.attributes, SpanKind.SERVER, status)

    def close(self) -> None:
        """Send what is queued; waits for the exporter."""
        self._processor.shutdown()  # type: ignore[no-untyped-call] # the library's

    def _emit(  # noqa: PLR0913, PLR0917 - a span has these parts
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        start: int,
        end: int,
        attributes: Attributes | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        status: Status | None = None,
    ) -> None:
        self._processor.on_end(
            ReadableSpan(
                name,
                context,
                parent,
                self._resource,
                attributes or {},
                kind=kind,
                status=status or Status(),
                start_time=start,
                end_time=end,
                instrumentation_scope=self._scope,
            )
        )


def _context(trace: int, span: int, *, remote: bool = False) -> SpanContext:
    return SpanContext(trace, span, is_remote=remote, trace_flags=_SAMPLED)
