"""Import: an ONNX model that was not trained here to the files of a model version."""

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.core.instance_schema import instance_schema
from app.core.version_folder import CARD, MODEL
from app.specs.jobs import ImportSpec
from workers.context import JobContext
from workers.evaluation.latency import time_session
from workers.evaluation.variant import Variant
from workers.export.version_files import write_contract, write_json
from workers.host import environment, job_threads
from workers.intake.first_run import FirstRun, first_run, open_file
from workers.intake.untrusted import read_untrusted

_BATCH = 32
_BUDGET_S = 0.3  # of one measurement
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
    beside = {path.name: path.stat().st_size for path in job.input.iterdir() if path.name != MODEL}
    model = read_untrusted(job.input / MODEL, beside)
    job.progress(0.4, "running it for the first time")
    found = first_run(job.input / MODEL, model, threads, batched=spec.metadata.batched)
    how = "rows are batched" if found.signature.batched else f"each request is run by itself: {found.why_not_batched}"
    job.log(f"{len(model.graph.node)} nodes, {len(found.signature.inputs)} inputs; {how}")
    job.progress(0.7, "measuring")
    base = _measure(job.input, found, threads)
    for path in job.input.iterdir():
        shutil.copyfile(path, job.output / path.name)
    write_contract(job.output, found.signature, found.inputs, found.outputs)
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
    write_json(job.output / CARD, card)
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
    session = open_file(folder / MODEL, threads)
    rows = _BATCH if found.signature.batched else 1
    latency = time_session(session, [_rows(found, 1)], _rows(found, rows), rows, threads, _BUDGET_S)
    size = sum(path.stat().st_size for path in folder.iterdir())
    return Variant(
        "fp32", "accepted", {"method": "none", "precision": "as imported"}, MODEL, size, {}, latency.to_json()
    )


def _rows(found: FirstRun, count: int) -> dict[str, npt.NDArray[Any]]:
    if not found.signature.batched:
        return found.inputs
    return {name: np.resize(array, (count, *array.shape[1:])) for name, array in found.inputs.items()}
