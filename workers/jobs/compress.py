"""Compress: variants of an existing model version."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from app.core.resources import BASE_VARIANT
from app.core.version_folder import COMPRESSION_PAGE, EVALUATIONS
from app.specs.jobs import CompressSpec
from workers.compression.report import write_report
from workers.compression.variants import Compressor
from workers.context import JobContext
from workers.evaluation.metrics import order
from workers.evaluation.variant import Variant
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
    compressor.given = [[step.to_json() for step in recipe] for recipe in spec.recipes]
    compressor.taken = _taken(version)
    variants = compressor.run(job.output)
    for variant in variants:
        job.log(f"variant {variant.name}: {variant.state}" + (f", {variant.reason}" if variant.reason else ""))
    report = _written(job, compressor.report or {}, variants, main)
    job.log(f"budget: {report['state']}" + "".join(f"; {why}" for why in report["stopped_by"]))
    if not variants:
        job.log("no way to compress suits the operators of this graph", level="warning")
    job.progress(1.0, "done")
    return {
        "main_metric": main,
        "metrics": order(judge.metrics(model), [main]),
        "rows": prepared.split.sizes(),
        "variants": [variant.to_json() for variant in variants],
        "compression": report,
    }


def _taken(version: Version) -> dict[str, str]:
    """Digests of the variants that the version has, by name: another file needs another name, the same one has one."""
    found = {BASE_VARIANT: ""}  # which no variant ever is
    for name, path in version.graphs().items():
        if name != BASE_VARIANT:
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _written(job: JobContext, report: Mapping[str, Any], variants: Sequence[Variant], main: str) -> dict[str, Any]:
    """The report with its `page`, if there is one, in a folder of this job: a later one may have the same winner."""
    if report["winner"] is None:
        return {**report, "page": None}
    write_report(job.output / EVALUATIONS / job.id, report, variants, main)
    return {**report, "page": f"{EVALUATIONS}/{job.id}/{COMPRESSION_PAGE}"}
