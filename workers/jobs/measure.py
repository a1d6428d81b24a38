"""Measure: the variants of an existing model version, on this host."""

from typing import Any

import onnx

from app.core.host import host_class
from app.specs.compression import CompressBudget
from app.specs.jobs import MeasureSpec
from workers.compression.variants import Compressor
from workers.context import JobContext
from workers.evaluation.metrics import order
from workers.jobs.judged_rows import judged_rows
from workers.jobs.judging import Version


def run(job: JobContext) -> dict[str, Any]:
    """Judge every accepted variant by the rows that decided when it was made; makes no files.

    Raises:
        InvalidSpec, InvalidData: the data set does not suit the version, or no longer does; the field is named.
    """
    spec = MeasureSpec.model_validate({k: v for k, v in job.spec.items() if k != "limits"})
    job.output.mkdir(parents=True, exist_ok=True)
    version = Version(job.input / "model")
    model = version.base()
    job.progress(0.0, "reading the data set")
    prepared, judge, main = judged_rows(job, spec, version, model)
    budget = CompressBudget(max_metric_drop=spec.max_metric_drop)
    compressor = Compressor(model, prepared, judge, main, budget, origin=version.origin, job=job)
    job.progress(0.3, "measuring")
    found = compressor.anew({name: onnx.load(path).SerializeToString() for name, path in version.graphs().items()})
    for variant in found:
        job.log(f"variant {variant.name}: {variant.state}" + (f", {variant.reason}" if variant.reason else ""))
    job.progress(1.0, "done")
    return {
        "host": host_class(),
        "main_metric": main,
        "metrics": order(judge.metrics(model), [main]),
        "rows": prepared.split.sizes(),
        "variants": [variant.to_json() for variant in found],
    }
