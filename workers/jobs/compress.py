"""Compress: variants of an existing model version."""

from dataclasses import replace
from typing import Any

from app.core.errors import InvalidData
from app.core.version_folder import SPLIT
from app.specs.evaluation import default_metric
from app.specs.jobs import CompressSpec
from app.specs.splits import SplitSpec
from workers.compression.report import write_report
from workers.compression.variants import Compressor
from workers.context import JobContext
from workers.data.labelled import read_labelled
from workers.data.prepare import Prepared, reload
from workers.data.splits import split_rows
from workers.data.tables import Notes
from workers.evaluation.judge import Judge
from workers.evaluation.metrics import order
from workers.host import job_threads
from workers.jobs.judging import Version, labelled_judge


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
    prepared, judge, main = _given(job, spec, version, model) if spec.dataset else _own(job, version)
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


def _own(job: JobContext, version: Version) -> tuple[Prepared, Judge, str]:
    """The rows that a version trained here kept apart."""
    prepared = reload(job, version.signature, version.folder / SPLIT)
    inputs, y = prepared.part("test")
    if not len(y) or not len(prepared.split.validation):
        raise InvalidData.at("dataset", msg="the version's validation or test rows are no longer in this data set")
    main, rule = version.trained_judge
    return prepared, Judge(version.signature.learned_task, inputs, y, rule, job_threads(job)), main


def _given(job: JobContext, spec: CompressSpec, version: Version, model: bytes) -> tuple[Prepared, Judge, str]:
    """A data set for an imported version, divided as a training would."""
    rows = read_labelled(job, version.signature, spec.mapping)
    try:
        split = split_rows(rows.y, rows.task, SplitSpec(), rows.given)
    except InvalidData as error:
        raise InvalidData.at("dataset", msg=error.errors[0].msg) from None
    prepared = Prepared(version.signature, rows.inputs, rows.y, rows.row_ids, split, Notes())
    everything, _ = labelled_judge(job, version, model, rows, spec.mapping)
    inputs, y = prepared.part("test")
    return prepared, replace(everything, inputs=inputs, y=y), default_metric(rows.task, len(rows.classes))
