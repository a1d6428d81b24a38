"""A table that does not fit memory: 20 million rows of 20 columns through ingest and two trainings, each in 3 GiB.

    python -m bench.large [--rows 20000000] [--folder .bench/large]

Prints the peak of resident memory of each job's process as the kernel counted it, what the models reached, and how fast
rows are read beside the plain bytes of the same file.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from app.core.signature import Column, Signature, Tensor
from workers.data.large import RowStream

LIMIT_MB = 3072
_CHUNK = 1_000_000
_NUMBERS, _CATEGORIES = 18, 2
_Table = dict[str, np.ndarray[Any, Any]]
JOBS: dict[str, dict[str, Any]] = {
    "gbdt": {"family": "gbdt", "params": {"n_estimators": 60, "learning_rate": 0.2}},
    "mlp": {
        "family": "mlp", "params": {"hidden": [64, 32]},
        "training": {"epochs": 1, "batch_size": 8192, "optimizer": {"lr": 0.004}},
    },
}  # fmt: skip


def generate(path: Path, rows: int) -> None:
    """Numbers of five kinds and two categories; the answer is a function of nine of them, with noise."""
    rng, writer = np.random.default_rng(11), None
    cities = np.asarray([f"city {at}" for at in range(50)])
    for start in range(0, rows, _CHUNK):
        count = min(_CHUNK, rows - start)
        x = rng.standard_normal((count, _NUMBERS - 1), dtype=np.float32)
        city, plan = rng.integers(0, len(cities), count), rng.integers(0, 3, count)
        score = x[:, 0] + x[:, 1] * x[:, 2] + np.sin(2 * x[:, 3]) + 0.5 * x[:, 4] ** 2 + city / 25 + plan - 2.5
        table: _Table = {f"n{at}": x[:, at] for at in range(_NUMBERS - 1)}
        table |= {"city": cities[city], "plan": np.asarray(["free", "basic", "plus"])[plan]}
        table["answer"] = np.where(score + rng.normal(0, 1, count) > 0, "yes", "no")
        found = pa.table(table)
        writer = writer or pq.ParquetWriter(path, found.schema, compression="zstd")
        writer.write_table(found)
    if writer is not None:
        writer.close()


def run_job(folder: Path, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Run a job in a process of its own, as an agent does; its result, seconds, and peak of resident memory in MiB."""
    (folder / "output").mkdir(parents=True, exist_ok=True)
    limits = {"threads": len(os.sched_getaffinity(0)), "memory_mb": LIMIT_MB}
    job = {"version": 1, "id": kind, "kind": kind, "attempt": 1, "spec": {**spec, "limits": limits}}
    (folder / "job.json").write_text(json.dumps(job))
    started = time.monotonic()
    with (folder / "events.jsonl").open("wb") as events:
        child = subprocess.Popen([sys.executable, "-m", "workers.child", str(folder)], stdout=events)
        _, status, usage = os.wait4(child.pid, 0)
    last = json.loads((folder / "events.jsonl").read_text().splitlines()[-1])
    if status or last["event"] != "result":
        raise SystemExit(f"{kind}: {last}")
    return {"result": last["result"], "seconds": time.monotonic() - started, "peak_mb": usage.ru_maxrss / 1024}


def read_speed(path: Path, rows: int) -> dict[str, float]:
    """Rows and megabytes of the file a second, as the trainings read it; and of the plain bytes."""
    names = pq.read_schema(path).names
    numbers = [name for name in names if name.startswith("n")]
    columns = [Column(name, "number", "numeric", at) for at, name in enumerate(numbers)]
    columns += [Column(name, "category", "categorical", at) for at, name in enumerate(("city", "plan"))]
    tensors = Tensor("numeric", "FP32", (-1, len(numbers))), Tensor("categorical", "BYTES", (-1, _CATEGORIES))
    signature = Signature("classification", tensors, (), tuple(columns))
    stream = RowStream(path, signature, np.arange(rows), np.zeros(rows, np.int8))
    groups = range(0, len(stream.sizes), max(1, len(stream.sizes) // 100))
    megabytes = path.stat().st_size / 1e6
    started = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 22):
            pass
    plain = megabytes / (time.perf_counter() - started)
    started = time.perf_counter()
    read = sum(len(stream.read(at)) for at in groups)
    taken = time.perf_counter() - started
    return {"rows_per_s": read / taken, "file_mb_per_s": megabytes * read / rows / taken, "plain_mb_per_s": plain}


def main() -> None:
    """Generate, ingest, train, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--folder", type=Path, default=Path(".bench/large"))
    arguments = parser.parse_args()
    folder: Path = arguments.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)  # checkpoints among others, from which a job would go on
    original = folder / "ingest" / "input" / "original"
    original.parent.mkdir(parents=True, exist_ok=True)
    generate(original, arguments.rows)
    print(f"{arguments.rows:,} rows of {_NUMBERS + _CATEGORIES} columns, {original.stat().st_size / 1e6:,.0f} MB")
    print(f"{'job':8} {'seconds':>8} {'peak MiB':>9}  of {LIMIT_MB}")
    ingest = run_job(folder / "ingest", "ingest", {"dataset": "large@1", "filename": "large.parquet"})
    print(f"{'ingest':8} {ingest['seconds']:8.0f} {ingest['peak_mb']:9.0f}")
    for name, changes in JOBS.items():
        job = folder / name
        (job / "input").mkdir(parents=True, exist_ok=True)
        (job / "input" / "dataset").symlink_to(folder / "ingest" / "output")
        spec = {
            "kind": "train", "model": name, "dataset": "large@1", "task": "classification", "target": "answer",
            "resources": {"memory_mb": LIMIT_MB}, **changes,
        }  # fmt: skip
        found = run_job(job, "train", spec)
        metric = found["result"]["metrics"]["roc_auc"]
        verdict = "ok" if found["peak_mb"] <= LIMIT_MB else "missed"
        print(f"{name:8} {found['seconds']:8.0f} {found['peak_mb']:9.0f}  {verdict}; ROC AUC {metric:.4f}")
    speed = read_speed(folder / "ingest" / "output" / "data.parquet", arguments.rows)
    print(
        f"rows are read at {speed['rows_per_s']:,.0f}/s by one thread, {speed['file_mb_per_s']:,.0f} MB/s of the file, "
        f"whose plain bytes are read at {speed['plain_mb_per_s']:,.0f} MB/s"
    )


if __name__ == "__main__":
    main()
