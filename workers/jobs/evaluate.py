"""Evaluate: every accepted variant of a version, judged by a data set with labels."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from app.core.errors import InvalidData
from app.core.version_folder import SPLIT
from app.specs.evaluation import default_metric
from app.specs.jobs import EvaluateSpec
from workers.context import JobContext
from workers.data.labelled import Labelled, read_labelled
from workers.data.splits import load_split
from workers.evaluation.metrics import order
from workers.evaluation.report import report
from workers.jobs.judging import Version, labelled_judge
from workers.learning import take

_POINTS = 50  # of a curve: the report is shown in lists of jobs


def run(job: JobContext) -> dict[str, Any]:
    """The report: metrics, intervals and curves of each variant. Nothing is written.

    Raises:
        InvalidSpec, InvalidData: the data set does not suit the version; the field is named.
    """
    spec = EvaluateSpec.model_validate({k: v for k, v in job.spec.items() if k != "limits"})
    job.output.mkdir(parents=True, exist_ok=True)
    version = Version(job.input / "model")
    job.progress(0.0, "reading the data set")
    rows = read_labelled(job, version.signature, spec.mapping)
    part = "all"
    if spec.mapping is None and version.card["data"]["dataset"] == spec.dataset:
        part, rows = "test", _test_rows(rows, version.folder / SPLIT)
    graphs = version.graphs()
    judge, base = labelled_judge(job, version, str(graphs.pop("fp32")), rows, spec.mapping)
    main = default_metric(rows.task, len(rows.classes)) if spec.mapping else version.trained_judge[0]
    metrics = {"fp32": order(judge.score(base), [main])}
    reports = {"fp32": report(judge, base, rows.classes, _POINTS)}
    for at, (name, path) in enumerate(graphs.items()):
        job.progress(0.5 + 0.5 * at / len(graphs), f"judging {name}")
        answers = judge.answers(str(path))
        metrics[name] = order(judge.score(answers), [main])
        reports[name] = report(judge, answers, rows.classes, _POINTS)
    job.progress(1.0, "done")
    binary = rows.task == "classification" and len(rows.classes) == 2  # noqa: PLR2004 - two classes
    return {
        "dataset": spec.dataset,
        "part": part,
        "rows": {"judged": len(rows.y), **rows.left_out},
        "unknown_labels": rows.unknown,
        "output": judge.answering.output,
        "form": judge.answering.form,
        "task": rows.task,
        "classes": list(rows.classes),
        "positive_class": rows.classes[judge.rule.positive] if binary else None,
        "main_metric": main if main in metrics["fp32"] else next(iter(metrics["fp32"])),
        "metrics": metrics,
        "reports": reports,
    }


def _test_rows(rows: Labelled, split: Path) -> Labelled:
    """Those that the training of this version never saw."""
    test = load_split(split, rows.row_ids).test
    if not len(test):
        raise InvalidData.at("dataset", msg="the version's test rows are no longer in this data set")
    return replace(rows, inputs=take(rows.inputs, test), y=rows.y[test], row_ids=rows.row_ids[test], given=None)
