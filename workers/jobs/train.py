"""Train: a data set version and a spec to the files of a model version."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from app.core.instance_schema import instance_schema
from app.core.version_folder import CARD, MODEL, SKETCH, SPLIT
from app.specs.jobs import TrainSpec
from workers.compression.material import Origin
from workers.compression.variants import Compressor
from workers.context import FitContext, JobContext
from workers.data.prepare import Prepared, prepare
from workers.evaluation.device import CPU, measuring_device
from workers.evaluation.judge import Judge
from workers.evaluation.leaks import Associations, look_for_leaks
from workers.evaluation.metrics import baseline, evaluate, metric_drop, order, positive_class
from workers.evaluation.sketch import make_sketch
from workers.evaluation.variant import Variant
from workers.export.parity import MIN_ROWS, Parity, check_parity
from workers.export.runtime import open_session, predict
from workers.export.version_files import write_contract, write_json
from workers.families.base import Family, Fitted
from workers.families.weight_folders import with_their_size
from workers.features.recipe import learner_of
from workers.host import check_devices, choose_device, environment, job_threads
from workers.jobs.closer import Judged, evidence_of, look_closer
from workers.jobs.refits import Refits
from workers.jobs.settling import check_settling, settle
from workers.learning import LearningData, Rule, take

_GOLDEN_ROWS = 4
_SKETCH_ROWS = 20_000
_CARD_VERSION = 1


def run(job: JobContext) -> dict[str, Any]:
    """Prepare, fit, export, prove, measure, and optionally compress.

    Raises:
        InvalidSpec, InvalidData: the spec does not fit the data; the field is named.
        ParityFailed: the exported model does not answer as the trained one.
        Stopped: the job was asked to stop; a later attempt resumes from the checkpoint.
    """
    started = time.monotonic()
    spec = TrainSpec.model_validate({k: v for k, v in job.spec.items() if k != "limits"}).check_family()
    spec = with_their_size(job, spec)
    job.output.mkdir(parents=True, exist_ok=True)
    job.progress(0.0, "reading the data set")
    threads = job_threads(job)
    learner = learner_of(spec)
    device, measured_on = _devices(spec, learner, threads)
    prepared = prepare(job, spec)
    data = prepared.learning(spec, threads, device)
    job.log(f"learning from {prepared.rows} rows, {len(prepared.signature.columns)} columns")
    job.progress(0.1, "training")
    binary = spec.task == "classification" and data.n_classes == 2  # noqa: PLR2004 - two classes
    positive = positive_class(prepared.y) if binary else 1
    check_settling(spec, prepared)
    refits = Refits(job, spec, prepared, positive, threads, device)
    fit = FitContext(job, count=1 + len(refits.splits))
    fitted = learner.fit(data, fit)
    evidence = evidence_of(fitted)
    refits.run()
    settled = settle(fit, spec, prepared, fitted, positive, refits.residuals())
    fitted, prepared = settled.fitted, replace(prepared, signature=settled.signature)
    rule = Rule.of(prepared.signature, positive)
    job.progress(0.82, "exporting")
    model = fitted.to_onnx().SerializeToString()
    parity = _prove(model, fitted, prepared, threads, rule)
    job.progress(0.87, "evaluating")
    (job.output / MODEL).write_bytes(model)
    report = _Report(job, spec, prepared, data, model, rule, measured_on)
    main, metrics, base = report.evaluate()
    compressor = _compressor(job, spec, report, main, time.monotonic() - started)
    variants = [base, *(compressor.run(job.output) if compressor is not None else [])]
    report.write_files()
    judged = Judged(model, prepared, report.judge, report.answers, main, metrics, evidence)
    closer = look_closer(judged, fit.points, refits)
    card = report.card(fitted, parity, metrics, main, variants, time.monotonic() - started) | settled.card | closer.card
    if compressor is not None and compressor.report is not None:
        card["compression"] = closer.evaluation["compression"] = compressor.report
    write_json(job.output / CARD, card)
    closer.write(job.output, card, plots=spec.evaluation.plots)
    job.progress(1.0, "done")
    return {
        "task": spec.task,
        "family": spec.family,
        "metrics": metrics["test"],
        "main_metric": main,
        "signature": prepared.signature.to_json(),
        "schema": instance_schema(prepared.signature),
        "environment": environment(threads, device),
        "seed": spec.training.seed,
        "variants": [variant.to_json() for variant in variants],
    }


def _devices(spec: TrainSpec, learner: Family, threads: int) -> tuple[str, str]:
    """Where the model learns, and where it is measured. InvalidSpec: not here."""
    device = choose_device(spec.resources.device, learner.devices)
    check_devices(spec.training.devices, device, threads)
    return device, CPU if spec.compress is None else measuring_device(spec.resources.device)


def _compressor(job: JobContext, spec: TrainSpec, report: "_Report", main: str, seconds: float) -> Compressor | None:
    if spec.compress is None:
        return None
    job.progress(0.92, "compressing")
    origin = Origin(spec.family, spec.params, spec.training, seconds)
    compressor = Compressor(report.model, report.prepared, report.judge, main, spec.compress, origin=origin, job=job)
    compressor.span = (0.92, 0.95)
    return compressor


def _prove(model: bytes, fitted: Fitted, prepared: Prepared, threads: int, rule: Rule) -> Parity:
    """The parity gate on test rows first, then others, at least MIN_ROWS if there are as many."""
    rows = np.concatenate([prepared.split.test, prepared.split.validation, prepared.split.train])
    sample = take(prepared.inputs, rows[:MIN_ROWS])
    spread = float(np.std(prepared.y[prepared.split.train])) if prepared.signature.task == "regression" else 0.0
    return check_parity(model, fitted.predict, sample, prepared.signature.task, threads, spread, rule)


class _Report:
    """Everything that is said of a freshly trained model."""

    def __init__(
        self, job: JobContext, spec: TrainSpec, prepared: Prepared, data: LearningData, model: bytes, rule: Rule,
        measured_on: str,
    ) -> None:  # fmt: skip
        self.job, self.spec, self.prepared, self.data, self.model = job, spec, prepared, data, model
        inputs, y = prepared.part("test")
        groups = None if prepared.closer.groups is None else prepared.closer.groups[prepared.split.test]
        self.judge = Judge(spec.task, inputs, y, rule, data.threads, groups=groups, device=measured_on)
        self.session = open_session(model, data.threads)
        self.answers = predict(self.session, inputs)

    def evaluate(self) -> tuple[str, dict[str, dict[str, float]], Variant]:
        """The main metric's name, the metrics of each part and of the baseline, and the base variant."""
        found = {}
        for part in ("train", "validation"):
            inputs, y = self.prepared.part(part)
            found[part] = evaluate(self.spec.task, y, predict(self.session, inputs), rule=self.judge.rule)
        found["test"] = self.judge.score(self.answers)
        y_train = self.prepared.y[self.prepared.split.train]
        guess = baseline(self.spec.task, y_train, len(self.judge.y), self.data.n_classes)
        found["baseline"] = evaluate(self.spec.task, self.judge.y, guess, rule=self.judge.rule)
        main = self.spec.main_metric(self.data.n_classes)
        if main not in found["test"]:
            other = "accuracy" if "accuracy" in found["test"] else next(iter(found["test"]))
            self.prepared.notes.warnings.append(f"{main} is undefined on the test rows; {other} is the main metric")
            main = other
        floor, reached = found["baseline"].get(main), found["test"][main]
        if floor is not None and metric_drop(main, floor, reached) >= 0:
            self.prepared.notes.warnings.append(
                f"on test rows it is no better than one answer for all ({main} {reached:.4g} against {floor:.4g})"
            )
        found = {part: order(values, [main, *self.spec.metrics]) for part, values in found.items()}
        base = Variant(
            "fp32", "accepted", {"method": "none", "precision": "fp32"}, MODEL, len(self.model), found["test"],
            self.judge.latency(self.model)[0].to_json(),
        )  # fmt: skip
        return main, found, base

    def write_files(self) -> None:
        """Signature, split, reference histograms and golden rows."""
        output, prepared = self.job.output, self.prepared
        prepared.save_split(output / SPLIT)
        rows = take(prepared.inputs, prepared.split.train[:_SKETCH_ROWS])
        write_json(output / SKETCH, make_sketch(prepared.signature, rows, predict(self.session, rows), self.judge.rule))
        golden = take(self.judge.inputs, slice(0, _GOLDEN_ROWS))
        answers = dict(zip([t.name for t in prepared.signature.outputs], self.session.run(None, golden), strict=True))
        write_contract(output, prepared.signature, golden, answers)

    def card(
        self,
        fitted: Fitted,
        parity: Parity,
        metrics: Mapping[str, Any],
        main: str,
        variants: list[Variant],
        seconds: float,
    ) -> dict[str, Any]:
        """The model card, JSON-ready."""
        spec, notes, signature = self.spec, self.prepared.notes, self.prepared.signature
        found = Associations([], [])
        if signature.image is None:
            found = look_for_leaks(self.data, self.judge.inputs, self._test_target())
        notes.warnings += found.hints
        for warning in notes.warnings:
            self.job.log(warning, level="warning")
        binary = spec.task == "classification" and self.data.n_classes == 2  # noqa: PLR2004 - two classes
        positive = signature.classes[self.judge.rule.positive] if binary else None
        return {
            "version": _CARD_VERSION,
            "model": spec.model,
            "task": spec.task,
            "family": spec.family,
            "params": spec.params,
            "training": spec.training.model_dump(mode="json"),
            "features": spec.features.model_dump(mode="json"),
            "data": {
                "dataset": spec.dataset,
                "target": spec.target,
                "classes": list(signature.classes),
                "positive_class": positive,
                "class_rows": self._class_rows(),
                "dropped_rows": notes.counts,
                "clean": [step.model_dump(mode="json") for step in spec.clean],
            },
            "split": {
                "method": self.prepared.split.method,
                "column": spec.split.by and spec.split.by[1],
                "seed": spec.split.seed,
                "rows": self.prepared.rows,
                "file": SPLIT,
            },
            "associations": found.columns,
            "fit": fitted.facts(),
            "main_metric": main,
            "metrics": dict(metrics),
            "parity": parity.to_json(),
            "variants": [variant.to_json() for variant in variants],
            "warnings": notes.warnings,
            "environment": environment(self.data.threads, self.data.device),
            "seed": spec.training.seed,
            "duration_s": round(seconds, 3),
        }

    def _class_rows(self) -> dict[str, int]:
        """Training rows of each class."""
        if not self.data.n_classes:
            return {}
        y = self.data.train.y if self.data.streamed is None else self.data.streamed.y
        counts = np.bincount(y, minlength=self.data.n_classes) if y.ndim == 1 else y.sum(axis=0).astype(np.int64)
        return dict(zip(self.prepared.signature.classes, counts.tolist(), strict=True))

    def _test_target(self) -> npt.NDArray[Any]:
        return self.data.standard.shrink(self.judge.y) if self.spec.task == "regression" else self.judge.y
