"""Compress: variants of an existing model version."""

import json
from typing import Any

from app.core.errors import InvalidData
from app.core.signature import Signature
from app.core.version_folder import CARD, MODEL, SIGNATURE, SPLIT
from app.specs.jobs import CompressSpec
from workers.compression.variants import Compressor
from workers.context import JobContext
from workers.data.prepare import reload
from workers.evaluation.variant import Judge
from workers.host import job_threads


def run(job: JobContext) -> dict[str, Any]:
    """Judge variants by the version's own split; writes accepted ones under `output/variants`.

    Raises:
        InvalidData: the data set no longer fits the version, or the version holds no split to be judged by.
    """
    spec = CompressSpec.model_validate({k: v for k, v in job.spec.items() if k != "limits"})
    job.output.mkdir(parents=True, exist_ok=True)
    folder = job.input / "model"
    if not (folder / SPLIT).exists():
        raise InvalidData.at("version", msg="this version was not trained here: it has no split to judge a variant by")
    signature = Signature.from_json(json.loads((folder / SIGNATURE).read_text(encoding="utf-8")))
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    job.progress(0.0, "reading the data set")
    prepared = reload(job, signature, folder / SPLIT)
    inputs, y = prepared.part("test")
    if not len(y) or not len(prepared.split.validation):
        raise InvalidData.at("dataset", msg="the version's validation or test rows are no longer in this data set")
    classes = card["data"]["classes"]
    positive = classes.index(card["data"]["positive_class"]) if card["data"]["positive_class"] is not None else 1
    judge = Judge(signature.learned_task, inputs, y, positive, job_threads(job))
    job.progress(0.3, "compressing")
    model = (folder / MODEL).read_bytes()
    variants = Compressor(model, prepared, judge, card["main_metric"], spec.budget).run(job.output)
    for variant in variants:
        job.log(f"variant {variant.name}: {variant.state}" + (f", {variant.reason}" if variant.reason else ""))
    job.progress(1.0, "done")
    return {"variants": [variant.to_json() for variant in variants]}
