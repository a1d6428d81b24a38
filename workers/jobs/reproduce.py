"""Reproduce: train a version anew from its own spec and data, and say how like it the new one is."""

import json
from typing import Any

import numpy as np
import polars as pl

from app.core.version_folder import CARD, MODEL, SPLIT
from app.specs.jobs import ReproduceSpec
from workers.context import JobContext
from workers.data.prepare import reload
from workers.export.runtime import open_session, predict
from workers.host import environment, job_threads
from workers.jobs import train
from workers.jobs.judging import Version
from workers.learning import Array

_HALF = 0.5  # of several labels, each is told from this probability on


def run(job: JobContext) -> dict[str, Any]:
    """The comparison. No version is made, and no file is kept.

    It trains with as many threads as the version was, if the worker may use so many, since sums depend on their number.

    Raises:
        Stopped: the job was asked to stop; a later attempt resumes where the training does.
        And whatever the training itself raises.
    """
    ReproduceSpec.model_validate({k: v for k, v in job.spec.items() if k not in {"limits", "trained"}})
    version = Version(job.input / "model")
    then = version.card["environment"]
    threads = min(int(then["threads"]), job_threads(job))
    again = JobContext(job.id, "train", job.attempt, _spec(job, threads), job.folder, job.events, job.stop)
    train.run(again)
    card = json.loads((job.output / CARD).read_text(encoding="utf-8"))
    job.progress(0.95, "comparing")
    found = _compare(again, version, card, threads)
    for path in sorted(job.output.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    job.progress(1.0, "done")
    return found | {"environment": _differences(then, environment(threads, card["environment"]["device"]))}


def _spec(job: JobContext, threads: int) -> dict[str, Any]:
    """The spec of the training, without what does not change the model."""
    spec = dict(job.spec["trained"])
    spec["evaluation"] = {**spec.get("evaluation", {}), "plots": False, "learning_curve": False}
    return spec | {"compress": None, "deploy": None, "limits": {**job.spec["limits"], "threads": threads}}


def _compare(job: JobContext, version: Version, card: dict[str, Any], threads: int) -> dict[str, Any]:
    """Rows, graph, answers to the test rows, and metrics, of the version and of the new model."""
    same_rows = pl.read_parquet(version.folder / SPLIT).equals(pl.read_parquet(job.output / SPLIT))
    same_graph = (version.folder / MODEL).read_bytes() == (job.output / MODEL).read_bytes()
    inputs, _ = reload(job, version.signature, version.folder / SPLIT).part("test")
    folders = version.folder, job.output
    then, now = (predict(open_session(str(folder / MODEL), threads), inputs) for folder in folders)
    metrics = _metrics(version, card)
    verdict = "different"
    if same_graph or np.array_equal(then, now):
        verdict = "identical"
    elif same_rows and all(metric["within_interval"] for metric in metrics.values()):
        verdict = "equivalent"
    return {
        "verdict": verdict,
        "same_split": same_rows,
        "same_graph": same_graph,
        "answers": _distance(version, then, now),
        "metrics": metrics,
    }


def _metrics(version: Version, card: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each metric on test rows then and now; is the new one within the interval of the old?"""
    intervals = version.card["intervals"]["metrics"]
    then, now = version.card["metrics"]["test"], card["metrics"]["test"]
    found = {}
    for name in sorted(set(then) & set(now), key=list(then).index):
        low, high = intervals.get(name, (then[name], then[name]))
        within = low <= now[name] <= high or now[name] == then[name]
        found[name] = {"then": then[name], "now": now[name], "interval": [low, high], "within_interval": within}
    return found


def _distance(version: Version, then: Array, now: Array) -> dict[str, Any]:
    """Largest difference of the answers to the test rows, and of classes the share of rows with the same label(s)."""
    found: dict[str, Any] = {"rows": len(then), "largest_difference": float(np.abs(then - now).max(initial=0.0))}
    signature = version.signature
    if signature.task == "multilabel":
        found["same_label"] = float(((then >= _HALF) == (now >= _HALF)).all(axis=1).mean())
    elif signature.task == "classification":
        rule = version.trained_judge[1]
        found["same_label"] = float((rule.labels(then) == rule.labels(now)).mean())
    return found


def _differences(then: dict[str, Any], now: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What of the environment is another: host, device, threads, and versions of libraries."""
    before, after = ({**each, **each["libraries"]} for each in (then, now))
    names = sorted((set(before) | set(after)) - {"libraries"})
    return {
        name: {"then": before.get(name), "now": after.get(name)}
        for name in names
        if before.get(name) != after.get(name)
    }
