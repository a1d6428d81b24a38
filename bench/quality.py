"""Scores on real data against references: ingest and train through the job functions, as a worker runs them.

    python -m bench.quality [--folds 5] [--seed 0] [NAME …]

Data lies in `../shared/data`, next to the repository. A row passes when its score is at least as good as `wanted`.
"""

import argparse
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from bench.tables import PART, TABLES, divided
from bench.texts import as_csv, divisions
from workers.context import Events, JobContext
from workers.evaluation.metrics import LOWER_IS_BETTER
from workers.jobs import evaluate, ingest, train

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
EVALUATE = {"kind": "evaluate", "model": "m", "version": 1, "dataset": "test@1"}
NETWORK = {"epochs": 20, "batch_size": 256, "optimizer": {"lr": 0.002}}
CLOTHES = {
    "epochs": 12, "batch_size": 128, "precision": "bf16", "optimizer": {"lr": 0.004, "weight_decay": 0.05},
    "label_smoothing": 0.1, "ema": 0.999, "augment": {"flip": True, "crop": 2},
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A data set, a family, the metric and what it should reach."""

    name: str
    path: str
    target: str
    family: str
    metric: str
    wanted: float | None
    reference: str
    spec: dict[str, Any] = field(default_factory=dict)

    @property
    def task(self) -> str:
        """Follows from the metric."""
        return "regression" if self.metric in {"rmse", "r2"} else "classification"


CHURN, ADULT, HOUSING = (
    "tabular/Telco-Customer-Churn.csv",
    "tabular/adult.data.csv.gz",
    "tabular/california_housing.csv",
)
FASHION, BEES = "images/fashion-mnist", "images/hymenoptera_data"
CASES = (
    Case("telco-gbdt", CHURN, "Churn", "gbdt", "roc_auc", 0.84, "0.84-0.85 commonly reported"),
    Case("telco-mlp", CHURN, "Churn", "mlp", "roc_auc", 0.83, "0.84-0.85 commonly reported"),
    Case("telco-linear", CHURN, "Churn", "linear", "roc_auc", 0.83, "0.84-0.85 commonly reported"),
    Case("adult-gbdt", ADULT, "column_15", "gbdt", "roc_auc", 0.925, "0.92-0.93 boosted trees"),
    Case("adult-mlp", ADULT, "column_15", "mlp", "roc_auc", 0.905, "0.92-0.93 boosted trees"),
    Case("housing-gbdt", HOUSING, "median_house_value", "gbdt", "rmse", 46_000, "47,730 tuned random forest"),
    Case("housing-forest", HOUSING, "median_house_value", "random_forest", "rmse", 52_000, "47,730 tuned forest"),
    Case(
        "fashion-cnn", FASHION, "label", "cnn", "accuracy", 0.915, "0.903-0.921 for 3 convolutions",
        {"training": {"epochs": 8, "batch_size": 128, "optimizer": {"lr": 0.004}}},
    ),
    Case("ag-news", "text", "label", "text_linear", "accuracy", 0.895, "0.889 linear SVM on word and character TF-IDF"),
    Case("sst2", "text", "label", "text_linear", "accuracy", 0.835, "0.831 linear SVM; 0.794 Socher et al. 2013"),
    Case("thucnews", "text", "label", "text_linear", "accuracy", 0.88, "0.870 characters, logistic regression"),
    Case("hotels", "text", "label", "text_linear", "accuracy", 0.90, "0.890 characters, logistic regression; 5 folds"),
    Case("ag-news-auto", "text", "label", "auto_text", "accuracy", 0.895, "0.889 linear SVM"),
    Case(
        "sst2-auto", "text", "label", "auto_text", "accuracy", 0.835, "0.831 linear SVM",
        {"params": {"time_limit_s": 600}},
    ),
    Case("thucnews-auto", "text", "label", "auto_text", "accuracy", 0.88, "0.870 characters, logistic regression"),
    Case("hotels-auto", "text", "label", "auto_text", "accuracy", 0.90, "0.890 characters, logistic; 5 folds"),
    Case("adult-auto", "table", "adult", "auto", "roc_auc", 0.930, "0.929 LightGBM; the published test"),
    Case("telco-auto", "table", "telco", "auto", "roc_auc", 0.851, "0.850 LightGBM; 5 folds"),
    Case("credit-auto", "table", "credit", "auto", "roc_auc", 0.786, "0.784 LightGBM; 5 folds"),
    Case("bank-auto", "table", "bank", "auto", "roc_auc", 0.81, "0.805 LightGBM, without duration; 5 folds"),
    Case("housing-auto", "table", "housing", "auto", "rmse", 42_500, "42,900 LightGBM"),
    Case("diamonds-auto", "table", "diamonds", "auto", "rmse", 528, "542 LightGBM"),
    Case(
        "nsl-kdd-auto", "table", "intrusions", "auto", "accuracy", 0.80, "0.807 random forest; the published test",
        {"evaluation": {"threshold": {"maximize": "accuracy"}}},
    ),
    Case("nsl-kdd-auc-auto", "table", "intrusions", "auto", "roc_auc", 0.965, "0.959 LightGBM; the published test"),
    Case(
        "fashion-resnet", FASHION, "label", "resnet", "accuracy", 0.935, "0.925 2 convolutions, 0.949 ResNet-18",
        {"params": {"widths": [48, 96, 192]}, "training": CLOTHES},
    ),
    Case(
        "bees-cnn", BEES, "label", "cnn", "accuracy", None, "0.60-0.75 without pre-trained weights",
        {"training": {"epochs": 40, "batch_size": 16, "optimizer": {"lr": 0.002}}},
    ),
)  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Run the chosen cases and print a table; 1 when one falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, default=5, help="of the cases in folds, the first so many")
    parser.add_argument("--seed", type=int, default=0, help="of folds and held out rows of tables, and of training")
    parser.add_argument("names", nargs="*", choices=[case.name for case in CASES], metavar="NAME")
    chosen = parser.parse_args(arguments)
    names = chosen.names
    if not DATA.exists():
        print(f"no data at {DATA}")
        return 1
    short = 0
    print(f"{'case':16}{'metric':10}{'wanted':>10}{'scored':>12}{'seconds':>9}  variants; reference")
    for case in CASES:
        if names and case.name not in names:
            continue
        short += run_table(case, chosen.folds, chosen.seed) if case.path == "table" else run(case, chosen.folds)
    return int(short > 0)


def run(case: Case, folds: int) -> int:
    """One case; 1 when it falls short."""
    if case.path == "text":
        return run_texts(case, folds)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        upload = _upload(DATA / case.path, Path(folder))
        first = _job(Path(folder) / "ingest", {"dataset": "d@1", "format": "auto", "filename": upload.name})
        first.input.mkdir(parents=True)
        upload.rename(first.input / "original")
        ingest.run(first)
        spec = {
            "kind": "train", "model": "m", "dataset": "d@1", "task": case.task, "target": case.target,
            "family": case.family, "metrics": [case.metric], "compress": {}, **case.spec,
        }  # fmt: skip
        if case.family == "mlp":
            spec["training"] = NETWORK
        second = _job(Path(folder) / "train", spec)
        second.input.mkdir(parents=True)
        first.output.rename(second.input / "dataset")
        result = train.run(second)
    _show(case, result, time.perf_counter() - started)
    score = result["metrics"][case.metric]
    if case.wanted is None:
        return 0
    return int(score > case.wanted if case.metric in LOWER_IS_BETTER else score < case.wanted)


def run_texts(case: Case, folds: int) -> int:
    """A case of texts: train on the published training rows, and let an evaluate job judge by the published test."""
    started, scores, result = time.perf_counter(), [], {}
    for rows, judges in islice(divisions(case.name.removesuffix("-auto"), DATA / "text"), folds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            spec = {
                "kind": "train", "model": "m", "dataset": "d@1", "task": case.task, "target": case.target,
                "family": case.family, "metrics": [case.metric], "split": {"test": 0.005, "validation": 0.005},
                "compress": {}, **case.spec,
            }  # fmt: skip
            first, second = _job(folder / "train", spec), _job(folder / "evaluate", EVALUATE)
            for job, part in ((first, rows), (second, judges)):
                uploaded = _job(
                    folder / f"ingest-{job.kind}", {"dataset": "d@1", "format": "auto", "filename": "d.csv"}
                )
                uploaded.input.mkdir(parents=True)
                as_csv(part, uploaded.input / "original")
                ingest.run(uploaded)
                job.input.mkdir(parents=True)
                uploaded.output.rename(job.input / "dataset")
            result = train.run(first)
            first.output.rename(second.input / "model")
            scores.append(evaluate.run(second)["metrics"]["fp32"][case.metric])
    result["metrics"][case.metric] = score = sum(scores) / len(scores)
    _show(case, result, time.perf_counter() - started)
    return int(case.wanted is not None and score < case.wanted)


def run_table(case: Case, folds: int, seed: int) -> int:
    """A case of `auto`, on the division that the data was published with, or on folds."""
    started, scores, result, table = time.perf_counter(), [], {}, TABLES[case.target]
    for rows in divided(case.target, DATA, folds, seed):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            first = _job(folder / "ingest", {"dataset": "d@1", "format": "auto", "filename": "d.csv"})
            first.input.mkdir(parents=True)
            rows.write_csv(first.input / "original")
            ingest.run(first)
            spec = {
                "kind": "train", "model": "m", "dataset": "d@1", "task": case.task, "target": table.target,
                "family": case.family, "metrics": [case.metric], "params": {"time_limit_s": table.seconds},
                "split": {"column": PART, "validation": 0.1}, "features": {"drop": list(table.drop)},
                "training": {"seed": seed}, **case.spec,
            }  # fmt: skip
            second = _job(folder / "train", spec)
            second.input.mkdir(parents=True)
            first.output.rename(second.input / "dataset")
            result = train.run(second)
            scores.append(result["metrics"][case.metric])
    result["metrics"][case.metric] = score = sum(scores) / len(scores)
    _show(case, result, time.perf_counter() - started)
    return int(score > (case.wanted or 0) if case.metric in LOWER_IS_BETTER else score < (case.wanted or 0))


def _upload(source: Path, folder: Path) -> Path:
    """A copy of a file, or a folder as a zip archive, as a user would upload it."""
    if source.is_file():
        copy = folder / source.name
        copy.write_bytes(source.read_bytes())
        return copy
    archive = folder / f"{source.name}.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            file.write(path, path.relative_to(source))
    return archive


def _job(folder: Path, spec: dict[str, Any]) -> JobContext:
    folder.mkdir()
    events = os.open(folder / "events.jsonl", os.O_CREAT | os.O_WRONLY)
    return JobContext("quality", spec.get("kind", "ingest"), 1, spec, folder, Events(events))


def _show(case: Case, result: dict[str, Any], seconds: float) -> None:
    base = result["variants"][0]
    told = [f"fp32 {base['latency']['p50_ms'] * 1e3:.0f} µs, {base['latency']['items_per_s']:,.0f}/s"]
    for variant in result["variants"][1:]:
        change = f"{variant['recipe'].get('speed_up', 0):.1f}x speed, {variant['metrics'].get(case.metric, 0):.4g}"
        told.append(f"{variant['name']} {variant['state']}: {change}")
    wanted = "-" if case.wanted is None else f"{case.wanted:,.5g}"
    print(
        f"{case.name:16}{case.metric:10}{wanted:>10}{result['metrics'][case.metric]:>12,.5g}"
        f"{seconds:>9.1f}  {'; '.join(told)}; {case.reference}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
