"""Compression beside plain quantizers: speed, bytes and loss of each, on this host, in one run.

    python -m bench.compress [--quick] [--keep FOLDER] [NAME …]

Each model is trained here on `../shared/data`, then compressed by a `compress` job whose budget is the loss that the
issue allows; what it keeps is judged by rows that decided nothing. Beside it stand ONNX Runtime's `quantize_dynamic`
and `quantize_static` as their guides have them, measured by the same rows: the test rows of the training. (Of
`imported` and `forest` the job divides all rows anew, so some of these have decided in it.) `--quick` takes few rows,
few epochs and a short search: it shows that everything runs, and its numbers mean little. `--keep` leaves the trained
models in a folder, and takes those of the same training from there. NNCF is set beside them if AIMASS_BENCH_NNCF
names an interpreter that has it; its dependencies do not go with ours.
"""

import argparse
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image

from app.core.host import host_name
from bench.quality import DATA, _job
from bench.tables import PART, TABLES
from bench.texts import as_csv, divisions
from workers.compression.int8 import CALIBRATION_ROWS, _Reader
from workers.context import Events, JobContext
from workers.data.prepare import reload
from workers.evaluation.judge import Judge
from workers.evaluation.metrics import metric_drop
from workers.host import job_threads
from workers.jobs import compress, import_model, ingest, train
from workers.jobs.judging import Version
from workers.learning import take

_QUICK_ROWS, _QUICK_SEARCH_S = 1500, 25.0
_NNCF_S = 600  # accuracy control is known not to end
_FASHION = "fashion-mnist"


@dataclass(frozen=True)
class Case:
    """What is trained, and what the issue wants of it."""

    name: str
    upload: Callable[[Path, int | None], str]  # writes it, and says its file name
    spec: dict[str, Any]
    wanted: tuple[float, float, float]  # times the speed, times smaller, loss
    objective: str = "speed"
    accuracy: float | None = None  # most loss of it, where another metric is the one that is wanted
    search_s: float = 900.0
    imported: bool = False


def _pictures(path: Path, rows: int | None) -> str:
    """Fashion-MNIST as an archive of class folders."""
    folder = next(DATA.joinpath("images", _FASHION).rglob("train-images*")).parent
    images = np.frombuffer(_bytes(folder, "train-images"), np.uint8, offset=16).reshape(-1, 28, 28)[:rows]
    labels = np.frombuffer(_bytes(folder, "train-labels"), np.uint8, offset=8)[:rows]
    with zipfile.ZipFile(path, "w") as archive:
        for at, (image, label) in enumerate(zip(images, labels, strict=True)):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "png")
            archive.writestr(f"class {label}/{at}.png", buffer.getvalue())
    return "fashion.zip"


def _bytes(folder: Path, beginning: str) -> bytes:
    path = next(folder.glob(f"{beginning}*"))
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def _texts(path: Path, rows: int | None) -> str:
    train_rows, _ = next(divisions("ag-news", DATA / "text"))
    as_csv(train_rows[:rows], path)
    return "news.csv"


def _adult(path: Path, rows: int | None) -> str:
    TABLES["adult"].read(DATA).drop(PART).head(rows or 10**9).write_csv(path)
    return "adult.csv"


# ResNet-18's channels and blocks, and MobileNetV2's; few epochs in bf16, for on two cores each takes minutes.
RESNET = {
    "family": "resnet", "params": {"widths": [64, 128, 256, 512], "depth": 2},
    "training": {"epochs": 4, "precision": "bf16", "optimizer": {"lr": 0.004}},
}  # fmt: skip
MOBILENET = {
    "family": "mobilenet", "params": {"width": 1.0},
    "training": {"epochs": 4, "precision": "bf16", "optimizer": {"lr": 0.003}},
}  # fmt: skip
TEXT = {"family": "transformer", "params": {"depth": 6, "max_tokens": 64}}
FOREST = {"family": "random_forest", "params": {"n_estimators": 300}}
CASES = [
    Case("resnet", _pictures, {"target": "label", **RESNET}, (8, 10, 0.005), search_s=1200.0),
    Case("mobilenet", _pictures, {"target": "label", **MOBILENET}, (3, 4, 0.01), search_s=1800.0),
    Case("text", _texts, {"target": "label", **TEXT}, (5, 8, 0.01)),
    Case("ensemble", _adult, {"target": "income", "family": "auto"}, (5, 5, 0.002), "latency", 0.01, 600.0),
    Case("imported", _pictures, {"target": "label", "family": "cnn"}, (2, 3.5, 0.01), imported=True),
    Case("forest", _adult, {"target": "income", **FOREST}, (2, 3.5, 0.01), search_s=300.0, imported=True),
]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("names", nargs="*")
    chosen = parser.parse_args(arguments)
    if not DATA.exists():
        print(f"no data at {DATA}")
        return 1
    print(f"{host_name()}; speed: rows a second in batches (ensemble: one row); loss on rows that decided nothing")
    print(f"{'model':11}{'recipe':44}{'speed':>8}{'smaller':>9}{'loss':>9}")
    cases = [case for case in CASES if not chosen.names or case.name in chosen.names]
    short = sum(run(case, chosen.keep, quick=chosen.quick) for case in cases)
    return int(short > 0 and not chosen.quick)


def run(case: Case, keep: Path | None, *, quick: bool) -> int:
    """One model; 1 when it falls short of what is wanted."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trained = _train(case, folder if keep is None else keep.resolve() / case.name, quick=quick)
        job = _compress(case, folder, trained, quick=quick)
        result = compress.run(job)
        version = Version(trained.output)
        prepared = reload(trained, version.signature, trained.output / "split.parquet")
        main_metric, rule = version.trained_judge
        judge = Judge(version.signature.learned_task, *prepared.part("test"), rule, job_threads(job))
        full = judge.metrics(version.base())[main_metric]
        beside = _Beside(judge, version.base(), main_metric, full, case)
        reached = [
            beside.show(one["name"], (job.output / one["path"]).read_bytes())
            for one in result["variants"]
            if one["path"]
        ]
        rows = take(prepared.inputs, prepared.split.train[:CALIBRATION_ROWS])
        plain = {"plain quantize_dynamic": _dynamic, "plain quantize_static": _static, "nncf": _nncf}
        watched = prepared.part("validation")
        most = case.wanted[2]
        plain["nncf with accuracy control"] = lambda model, rows, folder: _nncf(model, rows, folder, watched, most)
        ours = list(beside.shown)
        for label, make in plain.items():
            try:
                beside.show(label, make(version.base(), rows, folder))
                print(f"{case.name:11}  {_against(beside.shown[-1], ours)}", flush=True)
            except Exception as error:  # noqa: BLE001 - what a plain tool cannot do is an answer too
                print(f"{case.name:11}{label:44}  cannot: {' '.join(str(error).split())[:90]}", flush=True)
        report = result["compression"]
        wanted = "at least {}x, {}x smaller, loss at most {}".format(*case.wanted)
        best = "wanted" if any(reached) else "short of what is wanted"
        print(f"{case.name:11}{report['state']}, {len(report['candidates'])} measured; {best}: {wanted}", flush=True)
        return int(not any(reached))


_Numbers = tuple[float, float, float]  # times the speed, times smaller, loss


def _against(plain: _Numbers, ours: list[_Numbers]) -> str:
    """Whether one of ours is better on the front: as fast and small within 5 %, as good within a tenth of a point."""
    speed, smaller, loss = plain
    if any(s * 1.05 >= speed and b * 1.05 >= smaller and x <= max(loss, 0.0) + 0.001 for s, b, x in ours):
        return "one of the variants is as good in everything"
    return "no variant is as good in everything"


@dataclass(frozen=True)
class _Beside:
    """Measures graphs beside the full model, by test rows; `shown` are the numbers of those so far."""

    judge: Judge
    base: bytes
    metric: str
    full: float
    case: Case
    shown: list[_Numbers] = field(default_factory=list)

    def show(self, label: str, raw: bytes) -> bool:
        """A line; whether it is all that is wanted."""
        before, after = self.judge.latency(self.base, raw)
        one = self.case.objective == "latency"
        speed = before.p50_ms / after.p50_ms if one else after.items_per_s / before.items_per_s
        smaller = len(self.base) / len(raw)
        loss = metric_drop(self.metric, self.full, self.judge.metrics(raw)[self.metric])
        print(f"{self.case.name:11}{label:44}{speed:>8.2f}{smaller:>9.2f}{loss:>9.4f}", flush=True)
        self.shown.append((speed, smaller, loss))
        least, size, most = self.case.wanted
        return speed >= least and smaller >= size and loss <= most


def _train(case: Case, folder: Path, *, quick: bool) -> JobContext:
    """A training, or the same one that was kept in this folder."""
    spec = _training(case, quick=quick)
    kept, told = folder / "trained.json", json.dumps([spec, quick])
    if kept.exists() and kept.read_text() == told:
        return JobContext("kept", "train", 1, spec, folder / "train", Events(os.open(os.devnull, os.O_WRONLY)))
    for room in ("ingest", "train"):  # of another one, or of one that was ended
        shutil.rmtree(folder / room, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    uploaded = _job(folder / "ingest", {"dataset": "d@1", "format": "auto"})
    uploaded.input.mkdir(parents=True)
    name = case.upload(uploaded.input / "original", _QUICK_ROWS if quick else None)
    uploaded = replace(uploaded, spec={**uploaded.spec, "filename": name})
    ingest.run(uploaded)
    job = _job(folder / "train", spec)
    job.input.mkdir(parents=True)
    uploaded.output.rename(job.input / "dataset")
    train.run(job)
    kept.write_text(told)
    return job


def _training(case: Case, *, quick: bool) -> dict[str, Any]:
    spec = {"kind": "train", "model": "m", "dataset": "d@1", "task": "classification", **case.spec}
    if case.spec["family"] == "auto":
        spec["params"] = {"time_limit_s": 15 if quick else 300, "members": 4}
    else:
        spec["training"] = {"epochs": 15, "batch_size": 128, **case.spec.get("training", {})}
        if quick:
            spec["training"]["epochs"] = 1
    return spec


def _compress(case: Case, folder: Path, trained: JobContext, *, quick: bool) -> JobContext:
    """A job over the trained version, or over its graph alone, as if it came from elsewhere."""
    seconds = _QUICK_SEARCH_S if quick else case.search_s
    budget: dict[str, Any] = {"max_metric_drop": case.wanted[2], "objective": case.objective, "time_limit_s": seconds}
    budget["max_accuracy_drop"] = case.accuracy
    spec: dict[str, Any] = {"kind": "compress", "model": "m", "version": 1, "budget": budget}
    model = trained.output
    if case.imported:
        sent = _job(folder / "import", {"kind": "import", "model": "m", "upload": "u", "files": ["model.onnx"]})
        sent.input.mkdir(parents=True)
        (sent.input / "model.onnx").write_bytes((trained.output / "model.onnx").read_bytes())
        import_model.run(sent)
        model = sent.output
        spec |= {"dataset": "d@1", "mapping": _mapping(case, Version(trained.output))}
    job = _job(folder / "compress", spec)
    job.input.mkdir(parents=True)
    (job.input / "model").symlink_to(model)
    (job.input / "dataset").symlink_to(trained.input / "dataset")
    return job


def _mapping(case: Case, version: Version) -> dict[str, Any]:
    """What somebody who has the graph alone, and knows what it is, says of it."""
    signature = version.signature
    found = {"task": "classification", "target": case.spec["target"], "classes": list(signature.classes)}
    if signature.image is None:
        found["inputs"] = {
            tensor.name: {"columns": [column.name for column in signature.columns if column.tensor == tensor.name]}
            for tensor in signature.inputs
        }
    return found


def _dynamic(model: bytes, _: Any, folder: Path) -> bytes:
    source, target = _prepared(model, folder), folder / "plain.onnx"
    quantize_dynamic(source, target, weight_type=QuantType.QInt8)
    return target.read_bytes()


def _static(model: bytes, rows: Any, folder: Path) -> bytes:
    source, target = _prepared(model, folder), folder / "plain.onnx"
    quantize_static(
        source, target, _Reader(rows, 64), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return target.read_bytes()


def _prepared(model: bytes, folder: Path) -> Path:
    source, target = folder / "full.onnx", folder / "prepared.onnx"
    onnx.save(onnx.load_from_string(model), source)
    quant_pre_process(source, target, skip_symbolic_shape=True)
    return target


_NNCF = """
import sys, numpy as np, onnx, onnxruntime, nncf
source, rows, target, *watched = sys.argv[1:]
with np.load(rows, allow_pickle=False) as file:
    inputs = {name: file[name] for name in file.files}
batches = [{n: v[i : i + 1] for n, v in inputs.items()} for i in range(len(next(iter(inputs.values()))))]
model, data = onnx.load(source), nncf.Dataset(batches)
if not watched:
    made = nncf.quantize(model, data)
else:
    with np.load(watched[0], allow_pickle=False) as file:
        held = {name: file[name] for name in file.files}
    y = held.pop("__y__")
    def accuracy(model, _):
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        told = np.concatenate([
            session.run(None, {n: v[i : i + 64] for n, v in held.items()})[0].argmax(1) for i in range(0, len(y), 64)
        ])
        return float((told == y).mean())
    made = nncf.quantize_with_accuracy_control(model, data, data, accuracy, max_drop=float(watched[1]))
onnx.save(made, target)
"""


def _nncf(model: bytes, rows: Any, folder: Path, watched: tuple[Any, Any] | None = None, most: float = 0.01) -> bytes:
    """`nncf.quantize` in an environment of its own; with rows to watch, and their classes, it loses `most` on them.

    RuntimeError: no environment is named.
    """
    python = os.environ.get("AIMASS_BENCH_NNCF")
    if not python:
        raise RuntimeError("no interpreter with nncf is named by AIMASS_BENCH_NNCF")
    source, sample, target, held = (folder / name for name in ("full.onnx", "rows.npz", "nncf.onnx", "held.npz"))
    source.write_bytes(model)
    np.savez(sample, allow_pickle=False, **rows)
    command = [python, "-c", _NNCF, str(source), str(sample), str(target)]
    if watched is not None:
        np.savez(held, allow_pickle=False, __y__=watched[1], **watched[0])
        command += [str(held), str(most)]
    subprocess.run(command, check=True, capture_output=True, timeout=_NNCF_S, env={})
    return target.read_bytes()


if __name__ == "__main__":
    started = time.monotonic()
    code = main(sys.argv[1:])
    print(f"{time.monotonic() - started:.0f} s")
    sys.exit(code)
