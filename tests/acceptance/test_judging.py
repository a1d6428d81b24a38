"""Evaluation and compression of versions by data sets with labels, of imported versions and of trained ones."""

import csv
import io
import sqlite3
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from skl2onnx import to_onnx
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score

from tests.acceptance.problems import check_problem
from tests.support.foreign import Foreign
from tests.support.platform import Platform, breast_cancer_csv
from tests.support.servers import wait_until

MAPPING: dict[str, Any] = {"task": "classification", "target": "diagnosis"}


@pytest.fixture(scope="module")
def foreign() -> Foreign:
    return Foreign()


@pytest.fixture(scope="module")
def platform(foreign: Foreign) -> Iterator[Platform]:
    with Platform(workers=2) as running:
        running.upload("cancer", breast_cancer_csv())
        files = {"model": ("cancer.onnx", foreign.onnx())}
        job = running.call("POST", "/api/v1/models/foreign/versions", 202, files=files)
        running.wait(job["id"], "succeeded")
        yield running


@pytest.fixture(scope="module")
def mapping(foreign: Foreign) -> dict[str, Any]:
    return MAPPING | {"inputs": {"x": {"columns": foreign.columns}}, "classes": foreign.classes}


def ended(platform: Platform, **spec: Any) -> dict[str, Any]:
    job = platform.wait(platform.submit(**spec)["id"], "succeeded")
    result: dict[str, Any] = job["result"]
    return result


def refused(platform: Platform, **spec: Any) -> httpx.Response:
    return platform.client.post("/api/v1/jobs", json=spec)


class TestImported:
    def test_an_evaluation_says_what_numpy_says(
        self, platform: Platform, foreign: Foreign, mapping: dict[str, Any]
    ) -> None:
        spec = {"model": "foreign", "version": 1, "dataset": "cancer@1", "mapping": mapping}
        report = ended(platform, kind="evaluate", slices=["mean radius"], **spec)
        assert report["rows"] == {"judged": 569, "without_label": 0, "of_unknown_class": 0}
        assert (report["classes"], report["positive_class"]) == (foreign.classes, "malignant")
        assert (report["main_metric"], report["part"]) == ("roc_auc", "all")
        assert (report["output"], report["form"]) == ("logits", "logit")
        found, logits = report["metrics"]["fp32"], foreign.logits()
        assert found["accuracy"] == pytest.approx(((logits > 0) == foreign.y).mean(), abs=0.002)
        assert found["roc_auc"] == pytest.approx(roc_auc_score(foreign.y, logits), abs=1e-4)
        log_loss = np.logaddexp(0, np.where(foreign.y == 1, -logits, logits))
        assert found["log_loss"] == pytest.approx(np.minimum(log_loss, -np.log(1e-7)).mean(), rel=1e-3)
        told = report["reports"]["fp32"]
        low, high = told["intervals"]["metrics"]["roc_auc"]
        assert low <= found["roc_auc"] <= high <= 1
        assert np.sum(told["curves"]["confusion"]["counts"]) == 569
        assert {"roc", "pr", "calibration", "gains"} <= set(told["curves"])
        listed = platform.call("GET", "/api/v1/jobs?kind=evaluate&model=foreign")["items"]
        assert listed[0]["result"] == report
        unknown = refused(platform, kind="evaluate", slices=["mean area", "no such"], **spec)
        check_problem(unknown, 422, "invalid_spec", ["slices", 1])
        quarters = report["slices"]["mean radius"]
        assert sum(part["rows"] for part in quarters) == 569
        assert len(quarters) == 4
        files = "/api/v1/models/foreign/versions/1/files"
        folder = report["page"].removesuffix("report.html")
        there = {file["path"].removeprefix(folder) for file in platform.call("GET", files)["items"]}
        assert {"evaluation.json", "report.html", "plots/roc.svg", "plots/roc.png"} <= there
        page = platform.client.get(f"{files}/{report['page']}")
        assert page.headers["content-type"].split(";")[0] == "text/html"
        assert page.headers["content-security-policy"].startswith("sandbox")
        assert "Slices by mean radius" in page.text
        assert page.text.count("<img") == sum(path.endswith(".svg") for path in there)

    def test_the_order_of_the_classes_is_the_callers(self, platform: Platform, mapping: dict[str, Any]) -> None:
        turned = mapping | {"classes": ["benign", "malignant"]}
        report = ended(platform, kind="evaluate", model="foreign", version=1, dataset="cancer@1", mapping=turned)
        assert report["metrics"]["fp32"]["roc_auc"] < 0.1

    def test_a_compressed_variant_is_served(
        self, platform: Platform, foreign: Foreign, mapping: dict[str, Any]
    ) -> None:
        spec = {"model": "foreign", "version": 1, "dataset": "cancer@1", "mapping": mapping}
        result = ended(platform, kind="compress", budget={"max_metric_drop": 0.05}, **spec)
        assert sum(result["rows"].values()) == 569
        (variant,) = result["variants"]
        assert (variant["name"], variant["state"]) == ("int8", "accepted"), variant["reason"]
        version = platform.call("GET", "/api/v1/models/foreign/versions/1")
        base, int8 = version["variants"]
        assert int8["bytes"] < base["bytes"] / 2  # of 33 KB names and scales are a part
        assert int8["metrics"]["roc_auc"] == pytest.approx(result["metrics"]["roc_auc"], abs=0.02)
        again = ended(platform, kind="evaluate", **spec)
        assert set(again["metrics"]) == set(again["reports"]) == {"fp32", "int8"}
        routes = [{"version": 1, "variant": "int8"}]
        platform.call("PUT", "/api/v1/endpoints/foreign", 201, json={"model": "foreign", "routes": routes})
        instances = foreign.x.tolist()
        answer = platform.call("POST", "/api/v1/endpoints/foreign/predict", json={"instances": instances})
        served = np.array([prediction["logits"][0] for prediction in answer["predictions"]])
        assert roc_auc_score(foreign.y, served) == pytest.approx(again["metrics"]["int8"]["roc_auc"], abs=0.005)

    @pytest.mark.slow
    def test_a_forest_is_taught_to_few_trees_that_tell_its_labels(self, platform: Platform, foreign: Foreign) -> None:
        """As scikit-learn's exporter writes it, with texts for labels beside the probabilities."""
        labels = np.array(foreign.classes)[foreign.y]
        forest = RandomForestClassifier(200, random_state=0).fit(foreign.x[:300], labels[:300])
        graph = to_onnx(forest, foreign.x[:1], options={"zipmap": False}, target_opset={"": 21, "ai.onnx.ml": 3})
        files = {"model": ("forest.onnx", graph.SerializeToString())}
        platform.wait(platform.call("POST", "/api/v1/models/forest/versions", 202, files=files)["id"], "succeeded")
        mapping = MAPPING | {"inputs": {"X": {"columns": foreign.columns}}, "classes": forest.classes_.tolist()}
        spec = {"model": "forest", "version": 1, "dataset": "cancer@1", "mapping": mapping}
        budget = {"max_metric_drop": 0.3, "objective": "bytes", "time_limit_s": 2}
        result = ended(platform, kind="compress", budget=budget, **spec)
        name = result["compression"]["winner"]
        assert name.startswith("distilled"), result["compression"]
        base, small = (
            next(
                one for one in platform.call("GET", "/api/v1/models/forest/versions/1")["variants"] if one["name"] == n
            )
            for n in ("fp32", name)
        )
        assert small["bytes"] < base["bytes"] / 2
        routes = [{"version": 1, "variant": name}]
        platform.call("PUT", "/api/v1/endpoints/forest", 201, json={"model": "forest", "routes": routes})
        rows = foreign.x[300:]
        answer = platform.call("POST", "/api/v1/endpoints/forest/predict", json={"instances": rows.tolist()})
        told = [prediction["label"] for prediction in answer["predictions"]]
        shares = np.array([prediction["probabilities"] for prediction in answer["predictions"]])
        assert told == forest.classes_[shares.argmax(axis=1)].tolist()
        assert (forest.predict(rows) == told).mean() > 0.9

    @pytest.mark.parametrize(
        ("change", "loc"),
        [
            ({"mapping": None}, "mapping"),
            ({"mapping": MAPPING}, "mapping.inputs.x.columns"),
            ({"mapping": MAPPING | {"inputs": {"x": {"columns": ["mean area"]}}}}, "mapping.inputs.x.columns"),
            ({"mapping": MAPPING | {"inputs": {"z": {"columns": ["mean area"]}}}}, "mapping.inputs.z"),
            ({"mapping": MAPPING | {"inputs": {"x": {"columns": ["no such"] * 30}}}}, "mapping.inputs.x.columns.0"),
            ({"mapping": MAPPING | {"inputs": {"x": {"columns": ["diagnosis"] * 30}}}}, "mapping.inputs.x.columns.0"),
            ({"mapping": MAPPING | {"target": "no such"}}, "mapping.target"),
            ({"mapping": MAPPING | {"output": "no such"}}, "mapping.output"),
            ({"mapping": MAPPING | {"classes": ["a", "b", "c"]}}, "mapping.output"),
            ({"mapping": MAPPING | {"classes": ["a", "a"]}}, "mapping"),
            ({"mapping": MAPPING | {"task": "regression", "classes": ["a", "b"]}}, "mapping"),
            ({"mapping": MAPPING | {"task": "clustering"}}, "mapping.task"),
            ({"dataset": "none@1"}, "dataset"),
            ({"version": 9}, "version"),
        ],
    )
    @pytest.mark.parametrize("kind", ["evaluate", "compress"])
    def test_what_does_not_fit_is_named(
        self, platform: Platform, mapping: dict[str, Any], kind: str, change: dict[str, Any], loc: str
    ) -> None:
        spec = {"kind": kind, "model": "foreign", "version": 1, "dataset": "cancer@1", "mapping": mapping} | change
        where: list[str | int] = [int(part) if part.isdigit() else part for part in loc.split(".")]
        check_problem(refused(platform, **spec), 422, "invalid_spec", where)

    def test_compression_needs_a_data_set(self, platform: Platform, mapping: dict[str, Any]) -> None:
        answer = refused(platform, kind="compress", model="foreign", version=1, mapping=mapping)
        check_problem(answer, 422, "invalid_spec", ["dataset"])

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"task": "regression", "classes": None}, "'diagnosis' is not a column of numbers"),
            ({"classes": None}, "in which order: 'benign', 'malignant'"),
            ({"classes": ["yes", "no"]}, "classes 'yes', 'no'; it holds 'benign', 'malignant'"),
        ],
    )
    def test_what_only_the_job_can_see_fails_it(
        self, platform: Platform, mapping: dict[str, Any], change: dict[str, Any], words: str
    ) -> None:
        spec = {"kind": "evaluate", "model": "foreign", "version": 1, "dataset": "cancer@1"}
        job = platform.submit(**spec, mapping=mapping | change)
        error = platform.wait(job["id"], "failed")["error"]
        assert (error["code"], words in error["detail"]) == ("invalid_data", True), error


@pytest.fixture(scope="module")
def trained(platform: Platform) -> dict[str, Any]:
    return ended(
        platform, kind="train", model="own", dataset="cancer@1", task="classification", target="diagnosis",
        family="linear", compress={"max_metric_drop": 0.05},
    )  # fmt: skip


class TestGroups:
    @pytest.mark.slow
    def test_a_training_by_groups_is_looked_at_closely(self, platform: Platform) -> None:
        head, *lines = breast_cancer_csv().decode().splitlines()
        rows = [f"{head},clinic", *(f"{line},clinic {at % 23}" for at, line in enumerate(lines))]
        platform.upload("clinics", "\n".join(rows).encode())
        spec = {"kind": "train", "dataset": "clinics@1", "task": "classification", "target": "diagnosis"}
        spec |= {"family": "linear", "model": "clinics", "evaluation": {"folds": 3, "slices": ["clinic"]}}
        refusal = refused(platform, **spec, split={"group": "clinik"})
        check_problem(refusal, 422, "invalid_spec", ["split", "group"])
        refusal = refused(platform, **spec, split={"method": "time"})
        check_problem(refusal, 422, "invalid_spec", ["split", "time"])
        ended(platform, **spec, split={"group": "clinic"})
        version = platform.call("GET", "/api/v1/models/clinics/versions/1")
        assert "clinic" not in [column["name"] for column in version["signature"]["columns"]]
        card = platform.call("GET", version["links"]["card"])
        assert (card["split"]["method"], card["split"]["column"]) == ("group", "clinic")
        assert len(card["cross_validation"]["metrics"]["roc_auc"]["values"]) == 3
        assert sum(part["rows"] for part in card["slices"]["clinic"]) == card["split"]["rows"]["test"]
        report = ended(platform, kind="evaluate", model="clinics", version=1, dataset="clinics@1")
        assert report["metrics"]["fp32"] == pytest.approx(version["metrics"])


class TestTrained:
    def test_its_own_data_judges_by_the_test_rows(self, platform: Platform, trained: dict[str, Any]) -> None:
        report = ended(platform, kind="evaluate", model="own", version=1, dataset="cancer@1")
        assert (report["part"], report["rows"]["judged"]) == ("test", 114)
        assert report["metrics"]["fp32"] == pytest.approx(trained["metrics"])

    @pytest.mark.usefixtures("trained")
    def test_new_data_judges_by_all_rows(self, platform: Platform) -> None:
        lines = breast_cancer_csv().decode().splitlines()
        unlabelled = lines[2].rsplit(",", 1)[0] + ","
        unknown = lines[3].rsplit(",", 1)[0] + ",other"
        platform.upload("fresh", "\n".join([*lines[:1], unlabelled, unknown, *lines[200:400]]).encode())
        report = ended(platform, kind="evaluate", model="own", version=1, dataset="fresh@1")
        assert report["part"] == "all"
        assert report["rows"] == {"judged": 200, "without_label": 1, "of_unknown_class": 1}
        assert report["unknown_labels"] == {"other": 1}
        assert report["metrics"]["fp32"]["accuracy"] > 0.9

    @pytest.mark.usefixtures("trained")
    def test_it_knows_its_columns(self, platform: Platform, mapping: dict[str, Any]) -> None:
        spec = {"model": "own", "version": 1}
        answer = refused(platform, kind="evaluate", dataset="cancer@1", mapping=mapping, **spec)
        check_problem(answer, 422, "invalid_spec", ["mapping"])
        answer = refused(platform, kind="compress", dataset="cancer@1", **spec)
        check_problem(answer, 422, "invalid_spec", ["dataset"])
        platform.upload("other", b"a,b\n" + b"1,2\n" * 20)
        answer = refused(platform, kind="evaluate", dataset="other@1", **spec)
        check_problem(answer, 422, "invalid_spec", ["dataset"])


class TestReproduced:
    def test_the_same_model_comes_out(self, platform: Platform, trained: dict[str, Any]) -> None:
        """Byte for byte, and no version is made of it."""
        job = platform.call("POST", "/api/v1/models/own/versions/1/reproduce", 202)
        assert (job["kind"], job["spec"]["model"], job["spec"]["version"]) == ("reproduce", "own", 1)
        found = platform.wait(job["id"], "succeeded")["result"]
        assert (found["verdict"], found["same_split"], found["same_graph"]) == ("identical", True, True)
        assert {name: metric["now"] for name, metric in found["metrics"].items()} == trained["metrics"]
        assert len(platform.call("GET", "/api/v1/models/own/versions")["items"]) == 1

    def test_an_imported_version_has_no_training(self, platform: Platform) -> None:
        answer = platform.client.post("/api/v1/models/foreign/versions/1/reproduce")
        check_problem(answer, 422, "invalid_spec", ["version"])
        assert "imported" in answer.json()["detail"]

    def test_it_needs_its_data(self, platform: Platform) -> None:
        platform.upload("brief", breast_cancer_csv())
        spec = {"kind": "train", "task": "classification", "target": "diagnosis", "family": "linear"}
        ended(platform, model="brief", dataset="brief@1", **spec)
        platform.call("DELETE", "/api/v1/datasets/brief/versions/1?detach=true", 204)
        answer = refused(platform, kind="reproduce", model="brief", version=1)
        check_problem(answer, 422, "invalid_spec", ["version"])


class TestTargets:
    @pytest.mark.slow
    def test_a_threshold_holds_wherever_labels_are_told(self, platform: Platform) -> None:
        spec = {"kind": "train", "model": "cautious", "dataset": "cancer@1", "task": "classification"}
        spec |= {"target": "diagnosis", "family": "mlp", "deploy": {"endpoint": "cautious"}}
        refusal = refused(platform, **spec, evaluation={"threshold": {"maximize": "roc_auc"}})
        check_problem(refusal, 422, "invalid_spec", ["evaluation", "threshold", "maximize"])
        refusal = refused(platform, **spec | {"target": "mean area"}, evaluation={"threshold": 0.1})
        check_problem(refusal, 422, "invalid_spec", ["evaluation", "threshold"])
        training = {"epochs": 8, "optimizer": {"lr": 0.01}, "class_weight": {"malignant": 2.0}}
        result = ended(platform, **spec, training=training, evaluation={"threshold": 0.05, "plots": False})
        version = platform.call("GET", "/api/v1/models/cautious/versions/1")
        assert version["signature"]["threshold"] == {"label": "malignant", "probability": 0.05}
        report = ended(platform, kind="evaluate", model="cautious", version=1, dataset="cancer@1")
        assert report["metrics"]["fp32"] == pytest.approx(result["metrics"])
        assert ended(platform, kind="compress", model="cautious", version=1)["metrics"] == report["metrics"]["fp32"]
        head, *lines = (line.rsplit(",", 1)[0] for line in breast_cancer_csv().decode().splitlines())
        rows = [dict(zip(head.split(","), map(float, line.split(",")), strict=True)) for line in lines]
        answer = platform.call("POST", "/api/v1/endpoints/cautious/predict", json={"instances": rows})
        told = [(row["label"], row["probabilities"]["malignant"]) for row in answer["predictions"]]
        assert {label for label, p in told if p >= 0.05} == {"malignant"}
        assert {label for label, p in told if p < 0.05} == {"benign"}
        assert any(0.05 <= p < 0.5 for _, p in told)

    @pytest.mark.slow
    def test_a_row_may_have_several_labels(self, platform: Platform) -> None:
        pairs = [(a, b) for a in range(12) for b in range(12)]
        labels = {(a, b): "|".join(["high"] * (a > 6) + ["even"] * (b > 4)) or "|" for a, b in pairs}
        rows = [f"{a},{b},{labels[a, b]}" for a, b in pairs]
        platform.upload("tags", "\n".join(["a,b,tags", *rows]).encode())
        spec = {"kind": "train", "model": "tags", "dataset": "tags@1", "task": "multilabel", "target": "tags"}
        values = refused(platform, **spec | {"task": "regression"}, family="naive_bayes")
        check_problem(values, 422, "invalid_spec", ["task"])
        result = ended(platform, **spec, family="linear", deploy={"endpoint": "tags"})
        assert result["metrics"]["subset_accuracy"] > 0.8
        report = ended(platform, kind="evaluate", model="tags", version=1, dataset="tags@1")
        assert report["metrics"]["fp32"] == pytest.approx(result["metrics"])
        platform.upload("more-tags", "\n".join(["a,b,tags", "11,11,even|high", "0,0,odd|high", *rows[:20]]).encode())
        report = ended(platform, kind="evaluate", model="tags", version=1, dataset="more-tags@1")
        assert (report["rows"]["judged"], report["unknown_labels"]) == (21, {"odd|high": 1})
        instances = [{"a": 11, "b": 11}, {"a": 11, "b": 0}, {"a": 0, "b": 0}]
        answer = platform.call("POST", "/api/v1/endpoints/tags/predict", json={"instances": instances})
        assert [row["labels"] for row in answer["predictions"]] == [["even", "high"], ["high"], []]
        files = [file["path"] for file in platform.call("GET", "/api/v1/models/tags/versions/1/files")["items"]]
        assert {"plots/roc.svg", "plots/calibration.svg", "card.html"} <= set(files)

    @pytest.mark.slow
    def test_predictions_come_with_intervals(self, platform: Platform) -> None:
        spec = {"kind": "train", "model": "areas", "dataset": "cancer@1", "task": "regression", "target": "mean area"}
        spec |= {"family": "linear", "deploy": {"endpoint": "areas"}, "features": {"drop": ["mean perimeter"]}}
        result = ended(platform, **spec, evaluation={"intervals": 0.8, "folds": 5})
        assert result["metrics"]["coverage"] > 0.7
        report = ended(platform, kind="evaluate", model="areas", version=1, dataset="cancer@1")
        assert report["metrics"]["fp32"] == pytest.approx(result["metrics"])
        low, high = report["reports"]["fp32"]["intervals"]["metrics"]["coverage"]
        assert low <= result["metrics"]["coverage"] <= high
        schema = platform.call("GET", "/api/v1/models/areas/versions/1")["schema"]
        instance = dict.fromkeys(schema["properties"], 1.0) | {"diagnosis": "benign"}
        answer = platform.call("POST", "/api/v1/endpoints/areas/predict", json={"instances": [instance]})
        (row,) = answer["predictions"]
        low, high = row["interval"]
        assert low < row["value"] < high
        infer = platform.call("GET", "/v2/models/areas")
        assert [tensor["name"] for tensor in infer["outputs"]] == ["value", "lower", "upper"]


def served(platform: Platform, row: dict[str, Any]) -> str:
    body = {"instances": [row]}
    return str(platform.call("POST", "/api/v1/endpoints/moved/predict", 200, json=body)["variant"])


def test_a_variant_from_another_kind_of_host_waits_until_it_is_measured(platform: Platform) -> None:
    """The registry comes from elsewhere: an endpoint is routed to what nobody has measured here."""
    version, route = (
        {"model": "moved", "version": 1},
        {"model": "moved", "routes": [{"version": 1, "variant": "optimized"}]},
    )
    spec = {"task": "classification", "target": "diagnosis", "family": "gbdt", "evaluation": {"plots": False}}
    ended(platform, kind="train", model="moved", dataset="cancer@1", compress={"max_metric_drop": 0.2}, **spec)
    row = next(csv.DictReader(io.StringIO(breast_cancer_csv().decode())))
    row = {name: float(value) for name, value in row.items() if name != "diagnosis"}
    platform.call("PUT", "/api/v1/endpoints/moved", 201, json=route)
    assert served(platform, row) == "optimized"
    with sqlite3.connect(platform.data_dir / "registry.db", timeout=10) as registry:
        registry.execute("UPDATE variants SET latency = json_set(latency, '$.host', 'Another processor (avx2)')")
        registry.execute("UPDATE endpoints SET revision = revision + 1")
    wait_until(lambda: served(platform, row) == "fp32", 30, "the gateway looks at its endpoints")
    assert any("variant 'optimized' is not known to be good" in line for line in platform.output)
    answer = platform.client.put("/api/v1/endpoints/moved", json=route)
    check_problem(answer, 409, "conflict", ["routes", 0, "variant"], "run a job of kind measure")
    platform.call("POST", "/v2/repository/models/moved/load", 200, json={})  # keeps what the endpoint is routed to
    assert platform.call("GET", "/api/v1/endpoints/moved")["variant"] == "optimized"
    report = ended(platform, kind="measure", **version)  # within the budget of its compression
    assert [(one["name"], one["state"]) for one in report["variants"]] == [
        ("fp32", "accepted"),
        ("optimized", "accepted"),
    ]
    wait_until(lambda: served(platform, row) == "optimized", 30, "the gateway looks at its endpoints")
    [_, optimized] = platform.call("GET", "/api/v1/models/moved/versions/1")["variants"]
    assert [one["host"] for one in optimized["hosts"]] == ["avx2", report["host"]]
    assert optimized["hosts"][1]["metrics"] == optimized["metrics"]  # the same rows, the same file, the same processor
    ended(platform, kind="measure", budget={"max_metric_drop": 0.0}, **version)
    wait_until(lambda: served(platform, row) == "fp32", 30, "what is not good here is not served")
    answer = platform.client.put("/api/v1/endpoints/moved", json=route)
    check_problem(answer, 409, "conflict", ["routes", 0, "variant"], "was rejected: ")
