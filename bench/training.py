"""Training speed: the platform's fits and whole jobs beside the same training written by hand, in turns.

    python -m bench.training [--rounds 3] [NAME …]

By hand is LightGBM's own `train`, or a bare torch loop, with the same rows, network, batches, optimizer and schedule.
Both judge validation rows after each round or epoch and keep the best weights. A whole job also reads, divides,
exports, proves the export, measures intervals and draws plots; by hand it reads, and judges the test rows.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import torch
from sklearn.metrics import accuracy_score, roc_auc_score
from torch import nn

from app.specs.families import family
from app.specs.jobs import TrainSpec
from bench.quality import DATA, _job, _upload
from bench.tables import PART, TABLES, divided
from workers.context import JobContext
from workers.data.prepare import Prepared, prepare
from workers.families.base import load_family
from workers.families.cnn import Network as Cnn
from workers.families.encoding import DenseEncoder, TreeEncoder
from workers.families.mlp import Network as Mlp
from workers.host import job_threads
from workers.jobs import ingest, train
from workers.learning import LearningData, Part

WANTED = 1.05
SPECS: dict[str, dict[str, Any]] = {
    "gbdt": {"family": "gbdt", "params": {"n_estimators": 400}, "training": {"early_stopping": None}},
    "mlp": {"family": "mlp", "training": {"epochs": 15, "early_stopping": None, "optimizer": {"lr": 0.002}}},
    "cnn": {
        "family": "cnn",
        "training": {"epochs": 2, "batch_size": 128, "early_stopping": None, "optimizer": {"lr": 0.004}},
    },
}
_Score = float


def by_hand_trees(data: LearningData, test: Part) -> _Score:
    """LightGBM as its guide has it, on the platform's own features."""
    p = {**family("gbdt").validate({}).model_dump(), **SPECS["gbdt"]["params"]}
    settings = {
        "objective": "binary", "learning_rate": p["learning_rate"], "num_leaves": p["num_leaves"],
        "min_child_samples": p["min_child_samples"], "bagging_fraction": p["subsample"], "bagging_freq": 1,
        "feature_fraction": p["colsample"], "reg_lambda": p["reg_lambda"], "seed": data.training.seed,
        "num_threads": data.threads, "deterministic": True, "force_row_wise": True, "verbosity": -1,
    }  # fmt: skip
    encoder, x = TreeEncoder.learn(data, keep_missing=True)
    rows = lgb.Dataset(x, label=data.train.y)
    watched = rows.create_valid(encoder.transform(data.validation.inputs), label=data.validation.y)
    booster = lgb.train(settings, rows, p["n_estimators"], valid_sets=[watched])
    return float(roc_auc_score(test.y, np.asarray(booster.predict(encoder.transform(test.inputs)))))


def by_hand_mlp(data: LearningData, test: Part) -> _Score:
    """A bare loop over the same network."""
    torch.manual_seed(data.training.seed)
    encoder = DenseEncoder.fit(data)
    parts = [
        tuple(map(torch.from_numpy, encoder.transform(part.inputs))) for part in (data.train, data.validation, test)
    ]
    params = family("mlp").validate({}).model_dump()
    network = Mlp(encoder, data.n_classes, params, parts[0][0].numpy())
    answers = _loop(network, parts[0], data.train.y, parts[1], data.validation.y, data, parts[2])
    return float(roc_auc_score(test.y, answers[:, 1]))


def by_hand_cnn(data: LearningData, test: Part) -> _Score:
    """A bare loop over the same network."""
    torch.manual_seed(data.training.seed)
    parts = [(torch.from_numpy(np.asarray(part.inputs["image"])),) for part in (data.train, data.validation, test)]
    shape = data.signature.inputs[0].shape[1:]
    network = Cnn(shape, data.n_classes, family("cnn").validate({}).model_dump())
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stubs
    answers = _loop(network, parts[0], data.train.y, parts[1], data.validation.y, data, parts[2])
    return float(accuracy_score(test.y, answers.argmax(axis=1)))


def _loop(
    network: nn.Module, inputs: Any, y: Any, watched: Any, y_watched: Any, data: LearningData, test: Any
) -> np.ndarray[Any, Any]:
    """AdamW, one cycle, clipped gradients; the weights of the best epoch answer the test rows."""
    torch.set_num_threads(data.threads)
    spec, loss = data.training, nn.CrossEntropyLoss()
    target, expected = torch.from_numpy(y), torch.from_numpy(y_watched)
    groups = [[p for p in network.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False)]
    optimizer = torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": spec.optimizer.weight_decay}, {"params": groups[1], "weight_decay": 0}],
        lr=spec.optimizer.lr,
    )
    steps = -(-len(target) // spec.batch_size) * spec.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, spec.optimizer.lr, total_steps=steps + 1)
    best, kept = float("inf"), network.state_dict()
    for epoch in range(spec.epochs):
        network.train()
        for rows in torch.randperm(len(target), generator=torch.Generator().manual_seed(epoch)).split(spec.batch_size):
            optimizer.zero_grad()
            loss(network(*(x[rows] for x in inputs)), target[rows]).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        value = float(loss(_answers(network, watched), expected))
        if value < best:
            best, kept = value, copy.deepcopy(network.state_dict())
    network.load_state_dict(kept)
    return _answers(network, test).softmax(dim=1).numpy()


def _answers(network: nn.Module, inputs: Any) -> torch.Tensor:
    network.eval()
    with torch.inference_mode():
        return torch.cat([network(*part) for part in zip(*(x.split(1024) for x in inputs), strict=True)])


BY_HAND: dict[str, Callable[[LearningData, Part], _Score]] = {
    "gbdt": by_hand_trees, "mlp": by_hand_mlp, "cnn": by_hand_cnn
}  # fmt: skip


def dataset(name: str, folder: Path) -> Path:
    """Ingested: Adult as published, or Fashion-MNIST."""
    job = _job(
        folder / "ingest", {"dataset": "d@1", "format": "auto", "filename": "d.csv" if name != "cnn" else "d.zip"}
    )
    job.input.mkdir(parents=True)
    if name == "cnn":
        _upload(DATA / "images" / "fashion-mnist", folder).rename(job.input / "original")
    else:
        next(divided("adult", DATA)).write_csv(job.input / "original")
    ingest.run(job)
    return job.output


def measure(name: str, rounds: int) -> None:
    """Print one line."""
    spec: dict[str, Any] = {
        "kind": "train", "model": "m", "dataset": "d@1", "task": "classification", "target": "label", **SPECS[name]
    }  # fmt: skip
    if name != "cnn":
        spec |= {"target": TABLES["adult"].target, "split": {"column": PART, "validation": 0.1}}
    times: dict[str, list[float]] = {"fit": [], "job": [], "by hand": [], "by hand, whole": []}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        data_folder = dataset(name, folder)
        for number in range(rounds):
            job = _job(folder / f"job-{number}", spec)
            job.input.mkdir(parents=True)
            (job.input / "dataset").symlink_to(data_folder)
            started = time.perf_counter()
            score = _by_hand(name, job, times)
            times["by hand, whole"].append(time.perf_counter() - started)
            prepared, data = _prepared(job)
            started = time.perf_counter()
            load_family(family(name), TrainSpec.model_validate(spec).check_family().params).fit(data, _Apart.of(job))
            times["fit"].append(time.perf_counter() - started)
            del prepared, data
            started = time.perf_counter()
            result = train.run(job)
            times["job"].append(time.perf_counter() - started)
    fits = [a / b for a, b in zip(times["fit"], times["by hand"], strict=True)]
    jobs = [a / b for a, b in zip(times["job"], times["by hand, whole"], strict=True)]
    ratio, whole = statistics.median(fits), statistics.median(jobs)
    seconds = {key: statistics.median(value) for key, value in times.items()}
    print(
        f"{name:5} fit {seconds['fit']:6.1f} s, by hand {seconds['by hand']:6.1f} s: {ratio:.3f} "
        f"[{min(fits):.3f}, {max(fits):.3f}] ({'ok' if ratio <= WANTED else 'missed'}, wanted {WANTED}); "
        f"job {seconds['job']:6.1f} s, by hand with reading, judging {seconds['by hand, whole']:6.1f} s: {whole:.2f}; "
        f"score {result['metrics'][result['main_metric']]:.4f}, by hand {score:.4f}",
        flush=True,
    )


def _prepared(job: JobContext) -> tuple[Prepared, LearningData]:
    spec = TrainSpec.model_validate(job.spec).check_family()
    prepared = prepare(job, spec)
    return prepared, replace(prepared.learning(spec, job_threads(job), "cpu"), metric="accuracy")


def _by_hand(name: str, job: JobContext, times: dict[str, list[float]]) -> _Score:
    prepared, data = _prepared(job)
    inputs, y = prepared.part("test")
    started = time.perf_counter()
    score = BY_HAND[name](data, Part(inputs, y))
    times["by hand"].append(time.perf_counter() - started)
    return score


class _Apart(JobContext):
    """A job whose fit leaves no checkpoint for the job that comes after it."""

    @classmethod
    def of(cls, job: JobContext) -> "_Apart":
        """With a folder of its own."""
        folder = job.folder / "fit"
        folder.mkdir()
        return cls(job.id, job.kind, job.attempt, job.spec, folder, job.events)


def main() -> None:
    """All cases, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SPECS)}; all without")
    arguments = parser.parse_args()
    for name in arguments.names or SPECS:
        measure(name, arguments.rounds)


if __name__ == "__main__":
    main()
