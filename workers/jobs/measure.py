"""Measure: the variants of an existing model version, on this host, or on its GPU."""

from typing import Any

import onnx

from app.core.host import host_class, host_name
from app.core.resources import BASE_VARIANT
from app.specs.compression import CompressBudget
from app.specs.jobs import MeasureSpec
from workers.compression.variants import Compressor
from workers.context import JobContext
from workers.evaluation.judge import Judge
from workers.evaluation.metrics import order
from workers.evaluation.variant import Variant
from workers.jobs.judged_rows import judged_rows
from workers.jobs.judging import Version


def run(job: JobContext) -> dict[str, Any]:
    """Judge each variant within the budget that it was made for, by the rows that decided then; makes no files.

    Raises:
        InvalidSpec, InvalidData: the data set does not suit the version, or no longer does; the field is named.
    """
    spec = MeasureSpec.model_validate({k: v for k, v in job.spec.items() if k not in {"limits", "budgets"}})
    job.output.mkdir(parents=True, exist_ok=True)
    version = Version(job.input / "model")
    model = version.base()
    job.progress(0.0, "reading the data set")
    prepared, judge, main = judged_rows(job, spec, version, model)
    found = [_base(model, judge)]
    graphs = {name: path for name, path in version.graphs().items() if name != BASE_VARIANT}
    for at, (name, path) in enumerate(graphs.items()):
        job.progress(0.3 + 0.7 * at / len(graphs), f"measuring {name}")
        own = CompressBudget.model_validate(job.spec["budgets"].get(name, {}))
        # Its seed says which rows decided: of others some would be reported that it was chosen by.
        budget = own if spec.budget is None else spec.budget.model_copy(update={"seed": own.seed})
        compressor = Compressor(model, prepared, judge, main, budget, origin=version.origin, job=job)
        found.append(compressor.anew(name, onnx.load(path).SerializeToString()))
        job.log(f"variant {name}: {found[-1].state}" + (f", {found[-1].reason}" if found[-1].reason else ""))
    job.progress(1.0, "done")
    return {
        "host": host_class(host_name(judge.device)),
        "main_metric": main,
        "metrics": order(found[0].metrics, [main]),
        "rows": prepared.split.sizes(),
        "variants": [variant.to_json() for variant in found],
    }


def _base(model: bytes, judge: Judge) -> Variant:
    latency = judge.latency(model)[0].to_json()
    return Variant(BASE_VARIANT, "accepted", {"method": "none"}, None, len(model), judge.metrics(model), latency)
