"""Versions that the platform's own jobs make of real rows, each in a folder as an agent lays it out."""

import base64
import gzip
import os
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from app.specs.data import DATA_FILE
from app.specs.jobs import CompressSpec
from workers.compression.material import Material
from workers.compression.recipes import Maker
from workers.context import Events, JobContext
from workers.data.prepare import Prepared
from workers.evaluation.judge import Judge
from workers.jobs import import_model, ingest, train
from workers.jobs.judged_rows import judged_rows
from workers.jobs.judging import Version

ONE_THREAD = {"limits": {"threads": 1}}  # with more, sums of a training come in another order each time
SPLIT = {"test": 0.25, "validation": 0.2}  # of few rows enough to judge by
_NOWHERE = os.open(os.devnull, os.O_WRONLY)  # where events go


def job_in(folder: Path, inputs: Mapping[str, Path], **spec: Any) -> JobContext:
    """A job that finds these files and folders under the names that it looks for."""
    (folder / "input").mkdir(parents=True)
    for name, path in inputs.items():
        (folder / "input" / name).symlink_to(path)
    return JobContext("job", spec["kind"], 1, spec, folder, Events(_NOWHERE))


def first_lines(source: Path, count: int, target: Path) -> Path:
    """An upload of the first lines of a text file, gzipped or not."""
    opened = gzip.open if source.suffix == ".gz" else Path.open
    with opened(source, "rb") as lines:
        target.write_bytes(b"".join(islice(lines, count)))
    return target


def first_pictures(source: Path, count: int, target: Path) -> Path:
    """An upload of the first pictures of a folder of MNIST's kind: an archive of shorter idx files."""
    with zipfile.ZipFile(target, "w") as archive:
        for name, axes, size in (("images-idx3-ubyte", 3, 28 * 28), ("labels-idx1-ubyte", 1, 1)):
            with gzip.open(source / f"train-{name}.gz") as file:
                head = file.read(4 + 4 * axes)
                archive.writestr(name, head[:4] + struct.pack(">I", count) + head[8:] + file.read(count * size))
    return target


def ingested(upload: Path, folder: Path) -> Path:
    """The data set that the upload becomes."""
    job = job_in(folder, {"original": upload}, kind="ingest", dataset="d@1", filename=upload.name)
    ingest.run(job)
    return job.output


def trained(data: Path, folder: Path, **spec: Any) -> Path:
    """The version that is learnt from the data set."""
    given = {"model": "m", "dataset": "d@1", "task": "classification", "split": SPLIT, "evaluation": {"plots": False}}
    job = job_in(folder, {"dataset": data}, kind="train", **{**given, **spec, **ONE_THREAD})
    train.run(job)
    return job.output


def imported(model: Path, folder: Path) -> Path:
    """The version that a graph from elsewhere becomes."""
    job = job_in(folder, {"model.onnx": model}, kind="import", model="m", upload="u", files=["model.onnx"])
    import_model.run(job)
    return job.output


@dataclass(frozen=True)
class RealVersion:
    """A version's files, the data set that judges it, and what that one's columns mean if it was imported."""

    folder: Path
    data: Path
    mapping: Mapping[str, Any] | None = None

    def job(self, folder: Path, **budget: Any) -> JobContext:
        """That compresses it, in a folder of its own: it finds nothing that an earlier one has left."""
        spec: dict[str, Any] = {"kind": "compress", "model": "m", "version": 1, "budget": budget, **ONE_THREAD}
        if self.mapping is not None:
            spec |= {"dataset": "d@1", "mapping": self.mapping}
        return job_in(folder, {"model": self.folder, "dataset": self.data}, **spec)

    def maker(self, folder: Path, seed: int = 0) -> Maker:
        """What carries recipes out for a job that has just begun."""
        job = self.job(folder / "job")
        return Maker(Material(self.model, self.prepared, self.decides, seed, folder, self._version.origin, job))

    @property
    def model(self) -> bytes:
        """The full one."""
        return self._version.base()

    @property
    def prepared(self) -> Prepared:
        """Its rows."""
        return self._known[0]

    @property
    def main_metric(self) -> str:
        """Which decides, beside accuracy."""
        return self._known[2]

    @property
    def reports(self) -> Judge:
        """With the test rows, whose metrics are stored."""
        return self._known[1]

    @cached_property
    def decides(self) -> Judge:
        """With the validation rows, by which a loss is measured."""
        inputs, y = self.prepared.part("validation")
        return replace(self.reports, inputs=inputs, y=y, groups=None)

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of probabilities."""
        return self.prepared.signature.classes or tuple((self.mapping or {}).get("classes", ()))

    def instances(self, part: str) -> list[Any]:
        """The rows of a part as a client sends them: named cells, encoded pictures, or the tensors of an import."""
        rows = getattr(self.prepared.split, part)
        if self.mapping is not None:
            columns = {name: tensor[rows].tolist() for name, tensor in self.prepared.inputs.items()}
            return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        table = self._table(rows).select([column.name for column in self.prepared.signature.columns])
        if self.prepared.signature.image is not None:
            return [base64.b64encode(picture).decode() for picture in table.to_series()]
        return table.to_dicts()

    def truth(self, part: str) -> list[Any]:
        """What is right, as the data set has it: labels, or values."""
        target = self.mapping["target"] if self.mapping is not None else self.prepared.signature.target
        return self._table(getattr(self.prepared.split, part))[target].to_list()

    def _table(self, rows: Any) -> pl.DataFrame:
        return pl.read_parquet(self.data / DATA_FILE)[self.prepared.row_ids[rows]]  # an id is a row's number

    @cached_property
    def _version(self) -> Version:
        return Version(self.folder)

    @cached_property
    def _known(self) -> tuple[Prepared, Judge, str]:
        """What a job that compresses it reads first; nothing changes it."""
        with TemporaryDirectory() as folder:
            job = self.job(Path(folder) / "job")
            spec = CompressSpec.model_validate({k: v for k, v in job.spec.items() if k != "limits"})
            return judged_rows(job, spec, self._version, self.model)
