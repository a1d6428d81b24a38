"""Compress: variants of an existing model version."""

from typing import Any

from app.specs.jobs import CompressSpec
from workers.compression.report import write_report
from workers.compression.variants import Compressor
from workers.context import JobContext
from workers.evaluation.metrics import order
from workers.jobs.judged_rows import judged_rows
from workers.jobs.judging import Version


def run(job: JobContext) -> dict[str, Any]:
    """Judge variants by rows that decide and rows that are reported; writes accepted ones under `output/variants`.

    Raises:
        InvalidSpec, InvalidData: the data set does not suit the version, or no longer does; the field is named.
    """
    spec = CompressSpec.model_validate({k: v for k, v in job.spec.items() if k != "limits"})
    job.output.mkdir(parents=True, exist_ok=True)
    version = Version(job.input / "model")
    model = version.base()
    job.progress(0.0, "reading the data set")
    prepared, judge, main = judged_rows(job, spec, version, model)
    job.progress(0.3, "compressing")
    compressor = Compressor(model, prepared, judge, main, spec.budget, origin=version.origin, job=job)
    variants = compressor.run(job.output)
    for variant in variants:
        job.log(f"variant {variant.name}: {variant.state}" + (f", {variant.reason}" if variant.reason else ""))
    if compressor.report is not None:
        write_report(job.output, compressor.report, variants, main)
        job.log(
            f"budget: {compressor.report['state']}" + "".join(f"; {why}" for why in compressor.report["stopped_by"])
        )
    if not variants:
        job.log("no way to compress suits the operators of this graph", level="warning")
    job.progress(1.0, "done")
    return {
        "main_metric": main,
        "metrics": order(judge.metrics(model), [main]),
        "rows": prepared.split.sizes(),
        "variants": [variant.to_json() for variant in variants],
        "compression": compressor.report,
    }
