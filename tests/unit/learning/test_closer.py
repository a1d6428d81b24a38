"""The closer look at a trained model: folds, slices, learning curve, verdict, plots, and the card's page."""

import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any
from xml.parsers.expat import ParserCreate

import numpy as np
import onnx
import polars as pl
import pytest
from PIL import Image

from workers.context import Stopped
from workers.evaluation.complexity import complexity
from workers.evaluation.intervals import Intervals
from workers.evaluation.page import card_page
from workers.evaluation.plots import draw
from workers.evaluation.verdict import judge_fit
from workers.jobs import train

MakeJob = Callable[..., Any]
SCRIPT, IMAGE = "<script>alert(1)</script>", '"><img src=x onerror=alert(2)>'


class Page(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def read(job: Any, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((job.output / name).read_text())
    return found


def grouped(mixed: pl.DataFrame) -> pl.DataFrame:
    return mixed.drop("amount").with_columns(who=pl.int_range(pl.len()) % 60)


def test_everything_that_can_be_asked_for(make_job: MakeJob, mixed: pl.DataFrame):
    asked = {"folds": 3, "slices": ["city", "age", "who"], "learning_curve": True}
    job = make_job(grouped(mixed), family="gbdt", params={"n_estimators": 20}, split={"group": "who"}, evaluation=asked)
    result = train.run(job)
    card, evaluation = read(job, "card.json"), read(job, "evaluation.json")
    assert (card["split"]["method"], card["split"]["column"]) == ("group", "who")
    rows = card["split"]["rows"]
    crossed = card["cross_validation"]
    assert [sum(fold.values()) for fold in crossed["rows"]] == [rows["train"] + rows["validation"]] * 3
    for found in crossed["metrics"].values():
        assert found["interval"][0] <= found["mean"] <= found["interval"][1]
        assert found["mean"] == pytest.approx(np.mean(found["values"]))
    values = crossed["metrics"]["roc_auc"]["values"]
    half = 4.302653 * np.sqrt((1 / 3 + 1 / 2) * np.var(values, ddof=1))  # t with 2 degrees; held out for learned from
    interval = crossed["metrics"]["roc_auc"]["interval"]
    assert (interval[1] - interval[0]) / 2 == pytest.approx(half, rel=0.02)
    shares = [(point["share"], point["rows"] / rows["train"]) for point in card["learning_curve"]]
    assert [share for share, _ in shares] == [0.1, 0.25, 0.5, 1.0]
    assert all(there == pytest.approx(share, abs=0.06) for share, there in shares)
    assert card["learning_curve"][-1]["test"] == result["metrics"]["roc_auc"]
    assert set(card["slices"]) == {"city", "age", "who"}
    for slices in card["slices"].values():
        assert sum(part["rows"] for part in slices) == rows["test"]
    low, high = card["intervals"]["metrics"]["roc_auc"]
    assert low < result["metrics"]["roc_auc"] < high
    assert card["intervals"]["by"] == "groups"
    assert card["verdict"]["verdict"] == "fits"
    assert card["complexity"]["tree_nodes"] > 20
    assert set(evaluation["curves"]) == {"confusion", "roc", "pr", "calibration", "gains"}
    assert evaluation["training"]["validation_binary_logloss"][-1][0] == 20
    plots = {path.stem for path in (job.output / "plots").iterdir()}
    assert plots == {"confusion", "roc", "pr", "calibration", "gains", "training", "learning_curve"}
    fractions = [e["fraction"] for e in job.seen if e["event"] == "progress"]
    assert fractions == sorted(fractions)
    assert not list((job.folder / "fits").iterdir())


def test_a_share_too_small_for_the_recipe_is_left_out_of_the_learning_curve(make_job: MakeJob, cancer: pl.DataFrame):
    """A tenth of the training rows are 14, fewer than the components."""
    steps = [{"step": "pca", "components": 20}]
    asked = {"learning_curve": True, "plots": False}
    job = make_job(cancer[::3].head(190), family="linear", features={"steps": steps}, evaluation=asked)
    train.run(job)
    card = read(job, "card.json")
    assert [point["share"] for point in card["learning_curve"]] == [0.25, 0.5, 1.0]
    (told,) = [line for line in card["warnings"] if "learning curve" in line]
    assert told.startswith("the learning curve lacks 10% of the training rows: features.steps.0.components: ")
    assert not list((job.folder / "fits").iterdir())


def test_regression_is_drawn_and_shown(make_job: MakeJob, diabetes: pl.DataFrame):
    asked = {"folds": 2, "slices": ["bmi"]}
    spec = {"family": "linear", "task": "regression", "split": {"time": "age"}}
    bare = make_job(diabetes, name="bare", evaluation={"plots": False}, **spec)
    train.run(bare)
    assert not list((bare.output / "plots").iterdir())
    assert "<img" not in (bare.output / "card.html").read_text()
    job = make_job(diabetes, evaluation=asked, **spec)
    train.run(job)
    assert {path.name for path in (job.output / "plots").iterdir()} == {"residuals.svg", "residuals.png"}
    with Image.open(job.output / "plots" / "residuals.png") as picture:
        assert picture.size == (660, 510)
        assert len({color for _, color in picture.convert("RGB").getcolors(1 << 20)}) > 2  # something is drawn
    assert (job.output / "plots" / "residuals.png").stat().st_size < 100_000
    page = Page((job.output / "card.html").read_text())
    assert "Cross-validation" in page.text
    assert "Slices by bmi" in page.text
    assert "rmse" in page.text


def test_folds_are_resumed_one_by_one(make_job: MakeJob, mixed: pl.DataFrame):
    """Each fold has checkpoints of its own, and a whole one is not fitted again."""
    spec = {"family": "gbdt", "params": {"n_estimators": 20}, "features": {"drop": ["amount"]}}
    spec |= {"training": {"checkpoint_every_s": 0}, "evaluation": {"folds": 3}}
    whole = make_job(mixed, name="whole", **spec)
    train.run(whole)
    stopped = make_job(mixed, name="stopped", **spec)
    emit = type(stopped).progress

    class Stopping(type(stopped)):  # type: ignore[misc]  # made from the fixture's class
        def progress(self, fraction: float, told: str, eta_s: float | None = None) -> None:
            emit(self, fraction, told, eta_s)
            if told.startswith("fold 2: boosting round 10"):
                self.stop.set()

    stopped.__class__ = Stopping
    with pytest.raises(Stopped):
        train.run(stopped)
    again = make_job(mixed, name="again", **spec)
    shutil.copytree(stopped.checkpoint, again.checkpoint)
    train.run(again)
    messages = [e["message"] for e in again.seen if e["event"] == "log" and "resumed" in e["message"]]
    assert messages == ["resumed from round 20", "resumed after 1 further fits"]
    assert read(again, "card.json")["cross_validation"] == read(whole, "card.json")["cross_validation"]
    assert (again.output / "model.onnx").read_bytes() == (whole.output / "model.onnx").read_bytes()


def test_names_are_shown_and_never_run(make_job: MakeJob):
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)
    frame = pl.DataFrame(
        {
            "x": x,
            IMAGE: rng.choice([SCRIPT, "$\\frac{", "_\x01\x1b\u202e", "漢字"], 400),
            "target": np.where(x + rng.normal(0, 0.3, 400) > 0, SCRIPT, "$\\frac{"),
        }
    )
    job = make_job(frame, family="linear", evaluation={"slices": [IMAGE]})
    train.run(job)
    html = (job.output / "card.html").read_text()
    page = Page(html)
    assert not {"script", "iframe", "object", "embed", "link", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    sources = [value or "" for name, value in page.attributes if name in {"src", "href"}]
    assert sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert SCRIPT in page.text
    assert f"Slices by {IMAGE}" in page.text
    assert "$\\frac{" in page.text
    for path in (job.output / "plots").glob("*.svg"):
        tags: list[str] = []
        parser = ParserCreate()
        parser.StartElementHandler = lambda tag, attributes, tags=tags: tags.append(f"{tag} {' '.join(attributes)}")
        parser.Parse(path.read_bytes(), True)  # noqa: FBT003 - the parameter is positional only
        assert tags[0].startswith("svg ")
        assert not any(" on" in tag or tag.startswith("script") for tag in tags)


def test_the_same_numbers_are_drawn_to_the_same_bytes(make_job: MakeJob, wine: pl.DataFrame):
    job = make_job(wine, family="linear")
    train.run(job)
    evaluation = read(job, "evaluation.json")
    plots = draw(evaluation)
    assert plots == draw(evaluation)
    assert plots == {path.name: path.read_bytes() for path in (job.output / "plots").iterdir()}
    assert (job.output / "card.html").read_text() == card_page(read(job, "card.json"), evaluation, plots)


def test_a_slice_that_does_worse_is_told_of(make_job: MakeJob):
    rng = np.random.default_rng(1)
    x, kind = rng.normal(size=3000), rng.choice(["good", "bad"], 3000)
    yes = np.where(kind == "good", x > 0, rng.random(3000) < 0.5)
    frame = pl.DataFrame({"x": x, "kind": kind, "target": np.where(yes, "yes", "no")})
    job = make_job(frame, family="linear", evaluation={"slices": ["kind"]})
    train.run(job)
    (told,) = [w for w in read(job, "card.json")["warnings"] if w.startswith("slice")]
    assert told.startswith("slice kind = 'bad' (")
    assert "of all" in told


@pytest.mark.parametrize(
    ("train_auc", "test_auc", "width", "verdict"),
    [
        (0.95, 0.93, 0.04, "fits"),
        (1.0, 0.9, 0.04, "fits"),  # a forest knows its rows; most of what it learned holds
        (0.95, 0.6, 0.1, "over-fitted"),
        (0.7, 0.5, 0.5, "under-fitted"),  # too few rows to tell
        (0.51, 0.5, 0.04, "under-fitted"),
    ],
)
def test_verdicts(train_auc: float, test_auc: float, width: float, verdict: str):
    metrics = {part: {"roc_auc": value} for part, value in (("train", train_auc), ("test", test_auc))}
    metrics |= {"validation": {}, "baseline": {"roc_auc": 0.5}}
    found = judge_fit(
        "roc_auc", metrics, Intervals("rows", 100, {"roc_auc": (test_auc - width / 2, test_auc + width / 2)})
    )
    assert found["verdict"] == verdict
    assert found["validation"] is None
    errors = {part: {"rmse": 1 - values["roc_auc"]} for part, values in metrics.items() if values} | {"validation": {}}
    assert judge_fit("rmse", errors, Intervals("rows", 100, {"rmse": (0.0, width)}))["verdict"] == verdict
    assert judge_fit("roc_auc", metrics, Intervals("rows", 100, {}))["verdict"] is None


def test_size_of_a_network():
    filters, matrix = np.zeros((4, 1, 3, 3), np.float32), np.zeros((256, 10), np.float32)
    nodes = [
        onnx.helper.make_node("Conv", ["image", "filters"], ["map"], pads=[1, 1, 1, 1]),
        onnx.helper.make_node("Flatten", ["map"], ["flat"]),
        onnx.helper.make_node("MatMul", ["flat", "matrix"], ["answers"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "network",
        [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["n", 1, 8, 8])],
        [onnx.helper.make_tensor_value_info("answers", onnx.TensorProto.FLOAT, ["n", 10])],
        [onnx.numpy_helper.from_array(filters, "filters"), onnx.numpy_helper.from_array(matrix, "matrix")],
    )
    raw = onnx.helper.make_model(graph).SerializeToString()
    assert complexity(raw) == {"parameters": 36 + 2560, "bytes": len(raw), "macs": 36 * 64 + 2560}
