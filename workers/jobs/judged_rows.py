"""What `compress` and `measure` judge variants by: rows that decide and rows that are reported."""

from dataclasses import replace

import numpy as np
import polars as pl

from app.core.errors import InvalidData
from app.core.version_folder import SPLIT
from app.specs.data import DATA_FILE, ROW_ID
from app.specs.evaluation import default_metric
from app.specs.jobs import CompressSpec, MeasureSpec
from app.specs.splits import SplitSpec
from workers.context import JobContext
from workers.data.labelled import read_labelled
from workers.data.prepare import Closer, Prepared, reload
from workers.data.splits import split_rows
from workers.data.tables import Notes
from workers.data.values import as_text
from workers.evaluation.device import measuring_device
from workers.evaluation.judge import Judge
from workers.host import job_threads
from workers.jobs.judging import Version, labelled_judge
from workers.learning import Array


def judged_rows(
    job: JobContext, spec: CompressSpec | MeasureSpec, version: Version, model: bytes
) -> tuple[Prepared, Judge, str]:
    """The rows, a judge by those that are reported, who runs models where the job asks for it, and the main metric.

    Raises:
        InvalidSpec, InvalidData: the data set does not suit the version, or no longer does, or the job asks for a GPU
            on which no models can be run; the field is named.
    """
    device = measuring_device(spec.resources.device)
    prepared, judge, main = _given(job, spec, version, model) if spec.dataset else _own(job, version)
    return prepared, replace(judge, device=device), main


def _own(job: JobContext, version: Version) -> tuple[Prepared, Judge, str]:
    """The rows that a version trained here kept apart."""
    prepared = reload(job, version.signature, version.folder / SPLIT)
    inputs, y = prepared.part("test")
    if not len(y) or not len(prepared.split.validation):
        raise InvalidData.at("dataset", msg="the version's validation or test rows are no longer in this data set")
    prepared = replace(prepared, closer=Closer(groups=_groups(job, version, prepared.row_ids)))
    groups = None if prepared.closer.groups is None else prepared.closer.groups[prepared.split.test]
    main, rule = version.trained_judge
    return prepared, Judge(version.signature.learned_task, inputs, y, rule, job_threads(job), groups=groups), main


def _groups(job: JobContext, version: Version, row_ids: Array) -> Array | None:
    """The group of each row [N], if the version's rows were divided by groups."""
    divided = version.card["split"]
    if divided["method"] != "group":
        return None
    column = divided["column"]
    named = pl.read_parquet(job.input / "dataset" / DATA_FILE, columns=[ROW_ID, column])
    found = pl.DataFrame({ROW_ID: row_ids}).join(named, on=ROW_ID, how="left", maintain_order="left")[column]
    return np.unique(np.asarray(as_text(found).to_list(), str), return_inverse=True)[1]


def _given(
    job: JobContext, spec: CompressSpec | MeasureSpec, version: Version, model: bytes
) -> tuple[Prepared, Judge, str]:
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
