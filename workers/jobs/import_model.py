"""Import: an ONNX model that was not trained here to the files of a model version."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.core.signature import Signature
from app.specs.jobs import ImportSpec
from workers.context import JobContext
from workers.evaluation.latency import time_runs
from workers.evaluation.variant import Variant
from workers.host import environment, host_name, job_threads
from workers.intake.first_run import FirstRun, first_run, open_file
from workers.intake.untrusted import read_untrusted

MODEL_FILE = "model.onnx"
_BATCH = 32
_CARD_VERSION = 1


def run(job: JobContext) -> dict[str, Any]:
    """Check without trust, run, describe.

    Raises:
        InvalidData: the model is refused; the node, operator, tensor or file is named.
    """
    started = time.monotonic()
    spec = ImportSpec.model_validate({k: v for k, v in job.spec.items() if k != "limits"})
    threads = job_threads(job)
    job.output.mkdir(parents=True, exist_ok=True)
    job.progress(0.0, "checking the graph")
    beside = {path.name: path.stat().st_size for path in job.input.iterdir() if path.name != MODEL_FILE}
    model = read_untrusted(job.input / MODEL_FILE, beside)
    job.progress(0.4, "running it for the first time")
    found = first_run(job.input / MODEL_FILE, model, threads)
    how = "rows are batched" if found.signature.batched else "each request is run by itself"
    job.log(f"{len(model.graph.node)} nodes, {len(found.signature.inputs)} inputs; {how}")
    job.progress(0.7, "measuring")
    base = _measure(job.input, found, threads)
    for path in job.input.iterdir():
        shutil.copyfile(path, job.output / path.name)
    _write(job.output / "signature.json", found.signature.to_json())
    _write(job.output / "golden.json", _golden(found))
    card = {
        "version": _CARD_VERSION,
        "model": spec.model,
        "task": found.signature.task,
        "family": "imported",
        "description": spec.metadata.description,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "nodes": len(model.graph.node),
        "batched": found.signature.batched,
        "variants": [base.to_json()],
        "environment": environment(threads, "cpu"),
        "duration_s": round(time.monotonic() - started, 3),
    }
    _write(job.output / "card.json", card)
    job.progress(1.0, "done")
    return {
        "task": found.signature.task,
        "family": "imported",
        "metrics": {},
        "main_metric": "",
        "signature": found.signature.to_json(),
        "schema": instance_schema(found.signature),
        "environment": environment(threads, "cpu"),
        "seed": None,
        "variants": [base.to_json()],
    }


def _measure(folder: Path, found: FirstRun, threads: int) -> Variant:
    """Latency of one row and of a batch; there is no test metric without labelled rows."""
    session = open_file(folder / MODEL_FILE, threads)
    rows = _BATCH if found.signature.batched else 1
    one, many = (_rows(found, count) for count in (1, rows))
    single = time_runs(lambda _: session.run(None, one), 0.3)
    bulk = time_runs(lambda _: session.run(None, many), 0.3)
    p50, p95 = np.percentile(single, [50, 95]) * 1e3
    latency = {
        "p50_ms": float(p50),
        "p95_ms": float(p95),
        "items_per_s": float(rows / np.median(bulk)),
        "batch": rows,
        "host": host_name(),
        "threads": threads,
    }
    size = sum(path.stat().st_size for path in folder.iterdir())
    return Variant("fp32", "accepted", {"method": "none", "precision": "as imported"}, MODEL_FILE, size, {}, latency)


def _rows(found: FirstRun, count: int) -> dict[str, npt.NDArray[Any]]:
    if not found.signature.batched:
        return found.inputs
    return {name: np.resize(array, (count, *array.shape[1:])) for name, array in found.inputs.items()}


def instance_schema(signature: Signature) -> dict[str, Any]:
    """JSON schema of one instance: nested lists by input, or the list alone when there is one input."""
    words = {"BOOL": "boolean", "BYTES": "string"}
    properties: dict[str, Any] = {}
    for tensor in signature.inputs:
        kind = "integer" if "INT" in tensor.datatype else words.get(tensor.datatype, "number")
        schema: dict[str, Any] = {"type": kind}
        for size in reversed(tensor.shape[1:] if signature.batched else tensor.shape):
            bounds = {} if size < 0 else {"minItems": size, "maxItems": size}
            schema = {"type": "array", "items": schema, **bounds}
        properties[tensor.name] = schema
    whole = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"anyOf": [whole, *properties.values()]} if len(properties) == 1 else whole


def _golden(found: FirstRun) -> dict[str, Any]:
    kinds = {tensor.name: tensor.datatype for tensor in (*found.signature.inputs, *found.signature.outputs)}
    return {
        side: {name: _tensor(array, kinds[name]) for name, array in arrays.items()}
        for side, arrays in (("inputs", found.inputs), ("outputs", found.outputs))
    }


def _tensor(array: npt.NDArray[Any], datatype: str) -> dict[str, Any]:
    """Numbers that JSON has no words for are null: serving takes them for NaN."""
    data = [None if isinstance(x, float) and not np.isfinite(x) else x for x in array.ravel().tolist()]
    return {"datatype": datatype, "shape": list(array.shape), "data": data}


def _write(path: Path, value: Any) -> None:  # noqa: ANN401 - any JSON value
    path.write_text(json.dumps(value, allow_nan=False, ensure_ascii=False), encoding="utf-8")
