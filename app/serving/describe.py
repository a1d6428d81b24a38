"""What a served model says of itself to load tools: its configuration and its statistics, in the forms of Triton."""

from importlib.metadata import version
from typing import Any

from app.core.signature import Tensor
from app.serving.host import About
from app.serving.oip import EXTENSIONS, PLATFORM
from app.telemetry.metrics import CLIENT_GONE

Json = dict[str, Any]
SERVER: Json = {
    "name": "aimass",
    "version": version("aimass"),
    "extensions": [*EXTENSIONS, "statistics", "model_configuration", "model_repository"],
}


def configuration(about: About) -> Json:
    """The model configuration extension, as far as it means something here; shapes are without the batch."""
    signature, limits = about.signature, about.limits
    config: Json = {
        "name": about.source.endpoint,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "version_policy": {"specific": {"versions": [about.source.version]}},
        "max_batch_size": min(limits.max_batch, limits.max_queue) if signature.batched else 0,
        "input": [_port(tensor, batched=signature.batched) for tensor in signature.inputs],
        "output": [_port(tensor, batched=signature.batched) for tensor in signature.outputs],
        "model_transaction_policy": {"decoupled": False},
        "response_cache": {"enable": limits.cache_bytes > 0},
    }
    if signature.batched:
        config["dynamic_batching"] = {"max_queue_delay_microseconds": round(limits.max_delay_ms * 1000)}
    return config


def _port(tensor: Tensor, *, batched: bool) -> Json:
    kind = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
    return {
        "name": tensor.name,
        "data_type": f"TYPE_{kind}",
        "dims": list(tensor.shape[1:] if batched else tensor.shape),
    }


def statistics(about: About) -> Json:
    """One entry of the statistics extension: cumulative counts and times (ns) of this process."""
    counted = about.metrics
    receive, parse, queue, batch, compute, encode = ((sum(h.counts), h.total) for h in counted.phases)
    answered = counted.statuses[200]
    failed = counted.statuses.total() - answered
    whole = sum(seconds for _, seconds in (receive, parse, queue, batch, compute, encode))
    none, gone = _duration(0, 0.0), counted.statuses[CLIENT_GONE]
    (hits, hit_s), (misses, miss_s) = counted.lookups["hit"], counted.lookups["miss"]
    return {
        "name": about.source.endpoint,
        "version": about.version,
        "last_inference": int(counted.last_at * 1000),
        "inference_count": int(counted.batch_rows.total),
        "execution_count": sum(counted.batch_rows.counts),
        "inference_stats": {
            "success": _duration(answered, whole),
            "fail": _duration(failed, 0.0),
            "queue": _duration(*queue),
            "compute_input": _duration(*batch),
            "compute_infer": _duration(*compute),
            "compute_output": _duration(*encode),
            "cache_hit": _duration(int(hits), hit_s),
            "cache_miss": _duration(int(misses), miss_s),
        },
        "response_stats": {  # a request has one
            "0": {
                "compute_infer": _duration(*compute),
                "compute_output": _duration(*encode),
                "success": _duration(answered, compute[1] + encode[1]),
                "fail": _duration(failed - gone, 0.0),
                "empty_response": none,
                "cancel": _duration(gone, 0.0),
            }
        },
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": _duration(int(runs), stacking),
                "compute_infer": _duration(int(runs), computing),
                "compute_output": none,
            }
            for rows, (runs, stacking, computing) in sorted(counted.runs.items())
        ],
        "memory_usage": [{"type": "CPU", "id": 0, "byte_size": about.bytes}],
    }


def _duration(count: int, seconds: float) -> Json:
    return {"count": count, "ns": round(seconds * 1e9)}
