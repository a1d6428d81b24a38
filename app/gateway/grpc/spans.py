"""A call by gRPC as a span, named by its method."""

import time

import grpc

from app.gateway.grpc.calls import Call
from app.gateway.trace import begin_trace, continue_trace, export_call
from app.telemetry.metrics import PHASES
from app.telemetry.spans import Exporter

SERVICE = "inference.GRPCInferenceService"


def export(exporter: Exporter, call: Call, status: grpc.StatusCode) -> None:
    """Export a call that has ended; whatever is not OK has failed, as gRPC's own instrumentation has it."""
    given = call.metadata.get("traceparent", "")
    trace = continue_trace(given.encode() if isinstance(given, str) else given) or begin_trace(exporter)
    number: int = status.value[0]
    told: dict[str, str | int] = {
        "rpc.system": "grpc",
        "rpc.service": SERVICE,
        "rpc.method": call.method,
        "rpc.grpc.status_code": number,
    }
    if call.served is not None:
        source = call.served.source
        told |= {"aimass.endpoint": source.endpoint, "aimass.model": source.model}
        told |= {"aimass.version": call.served.version, "aimass.variant": source.variant}
    phases = list(zip(PHASES, call.phases, strict=False))  # none of a call that failed
    seconds = time.perf_counter() - call.started
    failed = status is not grpc.StatusCode.OK
    export_call(exporter, trace, f"{SERVICE}/{call.method}", seconds, told, phases, failed=failed)
