"""What `compress` and `evaluate` share: a version's files, and the data set that it is judged by."""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from app.core.errors import InvalidData
from app.core.signature import Signature
from app.core.version_folder import CARD, MODEL, SIGNATURE
from app.specs.mapping import Mapping
from app.specs.training import TrainingSpec
from workers.compression.material import Origin
from workers.context import JobContext
from workers.data.findings import listed
from workers.data.labelled import Labelled
from workers.evaluation.answers import Answering, answering_output, form_of
from workers.evaluation.judge import Judge
from workers.evaluation.metrics import positive_class
from workers.export.runtime import open_session, predict
from workers.host import job_threads
from workers.learning import Array, Rule


@dataclass(frozen=True)
class Version:
    """A version's folder among a job's inputs."""

    folder: Path

    @cached_property
    def signature(self) -> Signature:
        """What it takes and gives."""
        return Signature.from_json(json.loads((self.folder / SIGNATURE).read_text(encoding="utf-8")))

    @cached_property
    def card(self) -> dict[str, Any]:
        """The model card."""
        found: dict[str, Any] = json.loads((self.folder / CARD).read_text(encoding="utf-8"))
        return found

    def graphs(self) -> dict[str, Path]:
        """The file of each accepted variant by name, the base first."""
        added = sorted(self.folder.glob(f"variants/*/{MODEL}"))
        return {"fp32": self.folder / MODEL} | {path.parent.name: path for path in added}

    def base(self) -> bytes:
        """The base graph in one piece. InvalidData if its external data makes it larger than a graph may be."""
        try:
            return onnx.load(self.folder / MODEL).SerializeToString()
        except ValueError:
            raise InvalidData.at("version", msg="with its external data the model is over 2 GiB") from None

    @property
    def origin(self) -> Origin | None:
        """How it was trained; None for an imported one."""
        card = self.card
        if "training" not in card:
            return None
        training = TrainingSpec.model_validate(card["training"])
        return Origin(card["family"], card["params"], training, card["duration_s"])

    @property
    def trained_judge(self) -> tuple[str, Rule]:
        """Main metric of a version that was trained here, and how its answers are read."""
        data = self.card["data"]
        positive = data["classes"].index(data["positive_class"]) if data["positive_class"] is not None else 1
        return self.card["main_metric"], Rule.of(self.signature, positive)


def labelled_judge(
    job: JobContext, version: Version, model: bytes | str, rows: Labelled, mapping: Mapping | None
) -> tuple[Judge, Array]:
    """A judge over all of `rows`, who understands the model's output, and the base model's answers.

    Raises:
        InvalidSpec: no output fits the task.
        InvalidData: the model's answers are not numbers.
    """
    if mapping is None:
        answering, rule = Answering(), version.trained_judge[1]
    else:
        answering = answering_output(version.signature, mapping.output, rows.task, len(rows.classes))
        rule = Rule(positive_class(rows.y) if len(rows.classes) == 2 else 1)  # noqa: PLR2004 - binary
    threads = job_threads(job)
    raw = predict(open_session(model, threads), rows.inputs, answering.batch, answering.output)
    if bad := int((~np.isfinite(raw.reshape(len(raw), -1).astype(np.float64))).any(axis=1).sum()):
        msg = f"the model's answers to {bad} of {len(raw)} rows are not finite; a missing value or a wrong column?"
        raise InvalidData.at("dataset", msg=msg)
    if mapping is not None:
        answering = replace(answering, form=form_of(raw, rows.task, len(rows.classes), mapping.form))
        job.log(f"output '{answering.output}' is read as {answering.form}")
        if rows.classes:
            job.log(f"classes in its order: {listed(list(rows.classes))}")
    return Judge(rows.task, rows.inputs, rows.y, rule, threads, answering), answering.read(raw)
