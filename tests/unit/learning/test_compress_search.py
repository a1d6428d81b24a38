"""The search within a budget: what it keeps, what it says when nothing holds, and how it goes on after a stop."""

import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import polars as pl
import pytest
from pydantic import ValidationError

from app.core.version_folder import COMPRESSION, COMPRESSION_PAGE
from app.specs.compression import CompressBudget
from app.specs.jobs import TrainSpec
from workers.compression.material import Material, Origin
from workers.compression.measuring import SURE
from workers.compression.recipes import Maker
from workers.compression.search import Search
from workers.compression.sparsity import SHARES, without_least
from workers.compression.variants import Compressor
from workers.context import JobContext, Stopped
from workers.data.prepare import prepare, reload
from workers.evaluation.judge import Judge
from workers.evaluation.latency import Beside, Effort, by_turns
from workers.jobs import compress, train
from workers.jobs.judging import Version
from workers.learning import Rule

MakeJob = Callable[..., Any]


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is about how fast a model is."""
    monkeypatch.setattr("workers.evaluation.latency._BUDGET_S", 0.01)


@pytest.fixture
def compress_job(make_job: MakeJob, mixed: pl.DataFrame) -> Callable[..., Any]:
    """`compress_job(**budget)`: a job on a version that is trained once."""
    trained = make_job(mixed, family="gbdt", params={"n_estimators": 60}, features={"drop": ["amount"]})
    train.run(trained)

    def make(name: str = "later", **budget: Any) -> Any:
        job = make_job(mixed, name=name, kind="compress")
        job.spec = {"kind": "compress", "model": "m", "version": 1, "budget": budget}
        if not (job.input / "model").exists():
            (job.input / "model").symlink_to(trained.output)
        return job

    return make


def tried(job: Any) -> list[str]:
    return [e["message"] for e in job.seen if e["event"] == "log" and e["message"].startswith("tried")]


def test_the_best_is_kept_with_its_recipe_and_its_page(compress_job: Callable[..., Any], tmp_path: Path):
    job = compress_job(max_metric_drop=0.1, min_speedup=0.01, time_limit_s=1.5, objective="bytes", seed=5)
    result = compress.run(job)
    report, variants = result["compression"], {variant["name"]: variant for variant in result["variants"]}
    assert (report["state"], report["stopped_by"]) == ("reached", [])
    assert report["front"] == list(variants)
    assert min(variants.values(), key=lambda one: one["bytes"])["bytes"] <= variants[report["winner"]]["bytes"] * 1.06
    assert all(one["loss"]["at_most"] <= 0.1 for one in report["candidates"] if one["variant"])
    assert all(one["latency"]["peak_bytes"] > 0 for one in report["candidates"] if one["state"] == "accepted")
    folder = job.output / "evaluations" / job.id  # which a later job with the same winner leaves alone
    assert report["page"] == f"evaluations/{job.id}/{COMPRESSION_PAGE}"
    assert [path.name for path in (job.output / "variants" / report["winner"]).iterdir()] == ["model.onnx"]
    assert json.loads((folder / COMPRESSION).read_text())["candidates"] == report["candidates"]
    assert f"<b>{report['winner']}</b>" in (folder / COMPRESSION_PAGE).read_text()
    version = Version(job.input / "model")
    prepared = reload(job, version.signature, version.folder / "split.parquet")
    judge = Judge("classification", *prepared.part("test"), version.trained_judge[1], 1)
    maker = Maker(Material(version.base(), prepared, judge, 5, tmp_path, version.origin))
    for variant in variants.values():
        raw = (job.output / variant["path"]).read_bytes()
        assert maker.make(variant["recipe"]["steps"]) == raw  # a recipe makes the same file again
        assert judge.metrics(raw) == pytest.approx(variant["metrics"])
        assert variant["latency"]["peak_bytes"] > 0
        assert variant["latency"]["host"] == report["host"]


def test_what_cannot_be_reached_says_what_stopped_it_and_a_later_attempt_measures_nothing_twice(
    compress_job: Callable[..., Any],
):
    budget = {"max_metric_drop": 0.1, "max_bytes": 10, "time_limit_s": 1.0}
    job = compress_job(**budget)
    result = compress.run(job)
    report, [nearest] = result["compression"], result["variants"]
    assert (report["state"], report["winner"], report["nearest"]) == ("not reachable", None, nearest["name"])
    assert any("over max_bytes = 10" in why for why in report["stopped_by"])
    assert (nearest["state"], nearest["path"]) == ("rejected", None)
    assert nearest["metrics"]["roc_auc"] > 0.5
    assert not list(job.output.rglob("*.onnx"))
    before = tried(job)
    assert before
    assert any(event["event"] == "checkpoint" for event in job.seen)
    again = compress.run(compress_job(**budget))
    assert tried(job) == before
    assert again["compression"]["candidates"] == report["candidates"]


def test_a_recipe_that_ends_the_process_ends_two_attempts_and_no_more(
    compress_job: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    class Gone(BaseException):
        """The process is."""

    half, make = [{"step": "first_trees", "share": 0.5}], Maker.make

    def at_times_gone(maker: Maker, recipe: Any) -> bytes:
        if list(recipe) == half:
            raise Gone
        return make(maker, recipe)

    monkeypatch.setattr(Search, "_over", lambda search: len(search.notebook) > 2)
    monkeypatch.setattr(Maker, "make", at_times_gone)
    budget = {"max_metric_drop": 0.1, "time_limit_s": 600}
    for _ in range(2):
        with pytest.raises(Gone):
            compress.run(compress_job(**budget))
    candidates = compress.run(compress_job(**budget))["compression"]["candidates"]
    reasons = {json.dumps(one["recipe"]): one["reason"] for one in candidates}
    assert reasons[json.dumps(half)] == "the job's process ended twice while it was made"
    assert any(one["state"] == "accepted" for one in candidates)


def test_a_stop_while_a_recipe_is_made_is_not_held_against_it(
    compress_job: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    half, make = [{"step": "first_trees", "share": 0.5}], Maker.make
    budget = {"max_metric_drop": 0.1, "time_limit_s": 600}

    monkeypatch.setattr(Search, "_over", lambda search: len(search.notebook) > 2)

    def stopped(maker: Maker, recipe: Any) -> bytes:
        if list(recipe) == half:
            raise Stopped
        return make(maker, recipe)

    with monkeypatch.context() as patched:
        patched.setattr(Maker, "make", stopped)
        for _ in range(3):
            with pytest.raises(Stopped):
                compress.run(compress_job(**budget))
    candidates = compress.run(compress_job(**budget))["compression"]["candidates"]
    assert next(one for one in candidates if one["recipe"] == half)["bytes"] > 0


def test_a_stop_is_heeded_between_candidates(compress_job: Callable[..., Any]):
    job: JobContext = compress_job(max_metric_drop=0.1, time_limit_s=100)
    job.stop.set()
    with pytest.raises(Stopped):
        compress.run(job)


def test_a_model_that_knows_its_validation_rows_is_judged_by_half_of_the_test_rows(
    make_job: MakeJob, mixed: pl.DataFrame
):
    """And a training's own card tells of the search."""
    job = make_job(
        mixed, family="gbdt", params={"n_estimators": 60}, features={"drop": ["amount"]},
        compress={"max_metric_drop": 0.2, "time_limit_s": 0.5, "seed": 1}, split={"test": 0.3},
    )  # fmt: skip
    train.run(job)
    report = json.loads((job.output / "card.json").read_text())["compression"]
    assert f"<b>{report['state']}</b>" in (job.output / "card.html").read_text()
    spec = TrainSpec.model_validate(job.spec).check_family()
    prepared = prepare(job, spec)
    judge = Judge("classification", *prepared.part("test"), Rule(), 1)
    model, origin = (job.output / "model.onnx").read_bytes(), Origin("auto", {}, spec.training)
    compressor = Compressor(model, prepared, judge, "roc_auc", CompressBudget(max_metric_drop=0.2), origin=origin)
    assert compressor._unstructured(SimpleNamespace(answer_s=2.0), 100.0) == []  # type: ignore[arg-type] # too long
    visits = [sorted(half.inputs["numeric"][:, 1].tolist()) for half in (compressor._decider, compressor.judge, judge)]
    assert len(visits[0]) == pytest.approx(len(visits[2]) / 2, abs=1)
    assert sorted(visits[0] + visits[1]) == visits[2]
    learnt = Material(model, prepared, judge, 0, job.folder, origin).learnt()
    assert set(learnt.tolist()) == {*prepared.split.train.tolist(), *prepared.split.validation.tolist()}


def test_a_network_over_tables_is_taught_to_trees(
    make_job: MakeJob, mixed: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("workers.compression.space._LARGE", 0)
    # Over once the usual recipe and those in the network's place were measured, however slow the machine is.
    monkeypatch.setattr(Search, "_over", lambda search: len(search.notebook) > len(search.space.alone))
    training = {"epochs": 3, "optimizer": {"lr": 0.01}}
    trained = make_job(mixed, name="mlp", family="mlp", features={"drop": ["amount"]}, training=training)
    train.run(trained)
    job = make_job(mixed, name="smaller", kind="compress")
    job.spec = {"kind": "compress", "model": "m", "version": 1, "budget": {"max_metric_drop": 0.5, "time_limit_s": 600}}
    (job.input / "model").symlink_to(trained.output)
    report = compress.run(job)["compression"]
    found = report["candidates"]
    taught = [one for one in found if one["recipe"][0] == {"step": "student", "of": "trees", "size": "small"}]
    assert [(len(one["recipe"]), one["failed"], one["stops"]) for one in taught] == [(1, None, [])]
    assert len(list((job.checkpoint / "compression" / "taught").iterdir())) == len(
        [one for one in found if one["recipe"][-1]["step"] == "student" and one["failed"] is None]
    )  # for a later attempt
    packed = report["unstructured"]  # numbers, and nothing that could be served
    assert [one["share"] for one in packed] == list(SHARES)[: len(packed)] != []
    full = (trained.output / "model.onnx").read_bytes()
    for one in packed:
        raw = without_least(onnx.load_from_string(full), one["share"]).SerializeToString()
        assert one["packed_bytes"] == len(zlib.compress(raw, 1))
        assert one["smaller"] == round(len(zlib.compress(full, 1)) / one["packed_bytes"], 4) > 1
    page = next(job.output.rglob("compression.html")).read_text()
    assert f"{packed[0]['packed_bytes']:,}" in page


def always_alike(models: Any, inputs: Any, threads: int, batch: int, _: Effort, _device: str) -> Beside:
    """Twice as fast, whatever it is."""
    return replace(by_turns(models, inputs, threads, batch, Effort(1, 1, 0.0)), speed_up=2.0, quicker=2.0)


def test_names_are_those_of_the_version_in_everything_that_is_written(
    compress_job: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    """The very same file has one name, another file another one, and the search before keeps its report."""
    monkeypatch.setattr(Search, "_over", lambda search: len(search.notebook) > 3)
    monkeypatch.setattr("workers.compression.measuring.by_turns", always_alike)  # which of them are kept is not by luck
    budget = {"max_metric_drop": 0.2, "time_limit_s": 600, "objective": "bytes"}
    first = compress_job(**budget)
    made = {one["name"]: one for one in compress.run(first)["variants"]}
    assert "optimized" in made
    there = first.input / "model" / "variants"
    for name, one in made.items():
        (there / f"{name}-9").mkdir(parents=True)
        (there / f"{name}-9" / "model.onnx").write_bytes((first.output / one["path"]).read_bytes())
        (there / name).mkdir()
        (there / name / "model.onnx").write_bytes(b"another one of this name")
    second = compress_job("second", **budget)
    second.id = "job-2"
    result = compress.run(second)
    report = result["compression"]
    assert {one["name"] for one in result["variants"]} == set(report["front"]) <= {f"{name}-9" for name in made}
    told = json.loads((second.output / "evaluations" / "job-2" / COMPRESSION).read_text())
    assert [one["name"] for one in told["variants"]] == told["front"] == report["front"]
    assert {one["variant"] for one in told["candidates"]} - {None} == set(told["front"])
    assert {path.parent.name for path in second.output.rglob("model.onnx")} == set(report["front"])
    for name in report["front"]:
        (there / name / "model.onnx").unlink()
    third = compress_job("third", **budget)
    assert not set(compress.run(third)["compression"]["front"]) & set(made)  # which are other files


def test_what_was_fast_at_first_alone_is_not_kept(compress_job: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    """Trees that seem to be twice as fast whenever they are measured, but for the second time."""
    timed = by_turns

    def lucky(models: Any, inputs: Any, threads: int, batch: int, effort: Effort, _device: str) -> Beside:
        speed = 0.985 if effort == SURE else 1.822
        return replace(timed(models, inputs, threads, batch, Effort(1, 1, 0.0)), speed_up=speed, quicker=speed)

    monkeypatch.setattr("workers.compression.measuring.by_turns", lucky)
    monkeypatch.setattr(Search, "_over", lambda search: len(search.notebook) > 3)
    job = compress_job(max_metric_drop=0.2, min_speedup=1.1, time_limit_s=600)
    result = compress.run(job)
    report = result["compression"]
    assert (report["state"], report["winner"], report["front"]) == ("not reachable", None, [])
    assert report["stopped_by"] == ["measured again, it is 0.98 times as fast, under min_speedup = 1.1"]
    again = [one for one in report["candidates"] if one["first"]]
    assert again
    assert all((one["speed_up"], one["first"]["speed_up"]) == (0.985, 1.822) for one in again)
    assert not list(job.output.rglob("*.onnx"))


@pytest.mark.parametrize("allowed", [0.0, 0.2])
def test_without_a_search_it_is_said_too_what_was_found(compress_job: Callable[..., Any], allowed: float):
    job = compress_job(max_metric_drop=allowed)
    result = compress.run(job)
    report, [variant] = result["compression"], result["variants"]
    if variant["state"] == "accepted":
        assert (report["state"], report["winner"], report["stopped_by"]) == ("reached", variant["name"], [])
        assert (job.output / report["page"]).exists()
    else:
        assert (report["state"], report["winner"], report["front"]) == ("not reachable", None, [])
        assert (report["nearest"], report["page"]) == (variant["name"], None)
        assert report["stopped_by"] == [variant["reason"]]
    assert (variant["state"] == "accepted") == (allowed == 0.2)


@pytest.mark.parametrize("field", sorted(CompressBudget.model_fields.keys() - {"objective"}))
def test_true_is_no_number(field: str):
    with pytest.raises(ValidationError, match="must be a number, not true or false"):
        CompressBudget.model_validate({field: True})
    assert CompressBudget.model_validate({field: 1}).model_dump()[field] == 1
