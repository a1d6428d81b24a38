"""Evaluate: every accepted variant of a version, judged by a data set with labels."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from app.core.errors import InvalidData
from app.core.version_folder import EVALUATION, EVALUATIONS, PLOTS, REPORT_PAGE, SPLIT
from app.specs.evaluation import default_metric
from app.specs.jobs import EvaluateSpec
from workers.context import JobContext
from workers.data.labelled import Labelled, read_labelled
from workers.data.splits import load_split
from workers.evaluation.metrics import order
from workers.evaluation.page import report_page
from workers.evaluation.report import report
from workers.evaluation.slices import judge_slices
from workers.export.version_files import write_json
from workers.jobs.closer import draw_if
from workers.jobs.judging import Version, labelled_judge
from workers.learning import take

_POINTS = 50  # of a curve: the report is shown in lists of jobs


def run(job: JobContext) -> dict[str, Any]:
    """The report: metrics, intervals and curves of each variant, and slices; as files and as a page too.

    Raises:
        InvalidSpec, InvalidData: the data set does not suit the version; the field is named.
    """
    spec = EvaluateSpec.model_validate({k: v for k, v in job.spec.items() if k != "limits"})
    job.output.mkdir(parents=True, exist_ok=True)
    version = Version(job.input / "model")
    job.progress(0.0, "reading the data set")
    rows = read_labelled(job, version.signature, spec.mapping, spec.slices)
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
    slices, warnings = judge_slices(judge, base, rows.slices, main)
    for warning in warnings:
        job.log(warning, level="warning")
    binary = rows.task == "classification" and len(rows.classes) == 2  # noqa: PLR2004 - two classes
    folder = f"{EVALUATIONS}/{job.id}"
    found = {
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
        "slices": slices,
        "warnings": warnings,
        "page": f"{folder}/{REPORT_PAGE}",
    }
    _write(job.output / folder, f"{spec.model}@{spec.version}", found, plots=spec.plots)
    job.progress(1.0, "done")
    return found


def _write(folder: Path, title: str, found: dict[str, Any], *, plots: bool) -> None:
    """`evaluation.json`, plots of the full model, and the page."""
    (folder / PLOTS).mkdir(parents=True)
    write_json(folder / EVALUATION, found)
    drawn = draw_if(found["reports"]["fp32"], wanted=plots)
    for name, plot in drawn.items():
        (folder / PLOTS / name).write_bytes(plot)
    (folder / REPORT_PAGE).write_text(report_page(title, found, drawn), encoding="utf-8")


def _test_rows(rows: Labelled, split: Path) -> Labelled:
    """Those that the training of this version never saw."""
    test = load_split(split, rows.row_ids).test
    if not len(test):
        raise InvalidData.at("dataset", msg="the version's test rows are no longer in this data set")
    return replace(
        rows, inputs=take(rows.inputs, test), y=rows.y[test], row_ids=rows.row_ids[test], given=None,
        slices={name: labels[test] for name, labels in rows.slices.items()},
    )  # fmt: skip
