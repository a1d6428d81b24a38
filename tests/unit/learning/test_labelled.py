"""Imported models and data sets with labels: which tensors the rows become, and what the output says."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import LogisticRegression

from app.core.errors import InvalidData, InvalidSpec
from app.core.signature import Signature, Tensor
from app.specs.mapping import Mapping
from workers.data.labelled import read_labelled
from workers.evaluation.answers import Answering, answering_output, form_of
from workers.jobs import compress, evaluate

MakeJob = Callable[..., Any]


VALUE = Tensor("y", "FP32", (-1, 1))


def signature(*inputs: Tensor, outputs: Iterable[Tensor] = (VALUE,), batched: bool = True) -> Signature:
    return Signature("inference", inputs, tuple(outputs), (), batched=batched)


def mapping(columns: dict[str, list[str]], **more: Any) -> Mapping:
    inputs = {name: {"columns": names} for name, names in columns.items()}
    return Mapping.model_validate({"task": "regression", "target": "target", "inputs": inputs} | more)


class TestTables:
    FRAME = pl.DataFrame(
        {
            "id": [2**60 + 1, 2, 3], "half": [0.5, None, 2.0], "flag": [True, False, True],
            "word": ["a", None, "7"], "digits": ["1", "2", "3"], "minus": [1, -4, 2], "target": [1.0, 2.0, 4.0],
        }
    )  # fmt: skip

    def read(self, make_job: MakeJob, tensor: Tensor, columns: list[str]) -> Any:
        return read_labelled(make_job(self.FRAME), signature(tensor), mapping({"x": columns})).inputs["x"]

    @pytest.mark.parametrize(
        ("datatype", "columns", "wanted"),
        [
            ("INT64", ["id", "flag"], [[2**60 + 1, 1], [2, 0], [3, 1]]),
            ("FP32", ["half", "flag"], [[0.5, 1], [np.nan, 0], [2, 1]]),
            ("FP64", ["digits", "half"], [[1, 0.5], [2, np.nan], [3, 2]]),
            ("UINT8", ["digits", "flag"], [[1, 1], [2, 0], [3, 1]]),
            ("BYTES", ["word", "half"], [["a", "0.5"], ["", ""], ["7", "2"]]),
        ],
    )
    def test_columns_become_the_tensors_type(self, make_job: MakeJob, datatype: Any, columns: Any, wanted: Any) -> None:
        found = self.read(make_job, Tensor("x", datatype, (-1, 2)), columns)
        np.testing.assert_array_equal(found, np.array(wanted, found.dtype))

    @pytest.mark.parametrize(
        ("shape", "wanted"), [((-1, 2, 2), (3, 2, 2)), ((-1, -1), (3, 4)), ((-1, 2, -1), (3, 2, 2))]
    )
    def test_columns_fill_a_row_in_its_order(self, make_job: MakeJob, shape: Any, wanted: Any) -> None:
        found = self.read(make_job, Tensor("x", "FP32", shape), ["digits", "flag", "digits", "flag"])
        assert found.shape == wanted
        np.testing.assert_array_equal(found[1].ravel(), [2, 0, 2, 0])

    def test_one_column_fills_a_vector(self, make_job: MakeJob) -> None:
        assert self.read(make_job, Tensor("x", "FP32", (-1,)), ["half"]).shape == (3,)

    @pytest.mark.parametrize(
        ("datatype", "column", "words"),
        [
            ("FP32", "word", "'word' holds 'a', which is no number"),
            ("INT64", "half", "'half' has 1 missing values"),
            ("INT32", "id", "holds 1152921504606846977, which INT32 cannot hold"),
            ("UINT64", "minus", "'minus' holds -4, which UINT64 cannot hold"),
            ("FP16", "id", "holds 1.15.*, which FP16 cannot hold"),
        ],
    )
    def test_what_a_tensor_cannot_hold_is_refused(
        self, make_job: MakeJob, datatype: Any, column: str, words: str
    ) -> None:
        with pytest.raises(InvalidData, match=words) as caught:
            self.read(make_job, Tensor("x", datatype, (-1, 1)), [column])
        assert caught.value.errors[0].loc == ("mapping", "inputs", "x", "columns")

    def test_a_target_of_one_value_judges_too(self, make_job: MakeJob) -> None:
        frame = self.FRAME.with_columns(pl.lit(2.0).alias("target"))
        rows = read_labelled(make_job(frame), signature(Tensor("x", "FP32", (-1, 1))), mapping({"x": ["half"]}))
        assert rows.y.tolist() == [2, 2, 2]

    def test_columns_that_do_not_fill_a_row_are_refused(self, make_job: MakeJob) -> None:
        with pytest.raises(InvalidSpec, match=r"3 columns do not fill a row of shape \[2, 2\]"):
            self.read(make_job, Tensor("x", "FP32", (-1, 2, 2)), ["id", "half", "flag"])


class TestForms:
    LOGITS = np.array([[2.0, -1.0], [-3.0, 0.5]])

    @pytest.mark.parametrize("link", ["probabilities", "logits"])
    def test_all_classes(self, link: str) -> None:
        odds = np.exp(self.LOGITS)
        wanted = odds / odds.sum(axis=1, keepdims=True)
        raw = wanted if link == "probabilities" else self.LOGITS
        form = form_of(raw, "classification", 2)
        assert form == link
        np.testing.assert_allclose(Answering("y", 32, form).read(raw), wanted)

    @pytest.mark.parametrize("link", ["probability", "logit"])
    @pytest.mark.parametrize("shape", [(2,), (2, 1)])
    def test_the_second_of_two(self, link: str, shape: tuple[int, ...]) -> None:
        logit = np.array([0.3, 800.0])  # whose exponential overflows
        second = 1 / (1 + np.exp(-np.minimum(logit, 100)))
        raw = (second if link == "probability" else logit).reshape(shape)
        form = form_of(raw, "classification", 2)
        assert form == link
        np.testing.assert_allclose(Answering("y", 32, form).read(raw), np.stack([1 - second, second], axis=1))

    def test_the_caller_may_say_what_they_are(self) -> None:
        margins = np.array([[0.2, 0.8], [0.6, 0.4]])
        assert form_of(margins, "classification", 2, "logits") == "logits"
        assert form_of(margins[:, 0], "classification", 2, "logits") == "logit"
        one_against_rest = np.array([[0.2, 0.9], [0.6, 0.6]])
        assert form_of(one_against_rest, "classification", 2) == "logits"
        read = Answering("y", 32, form_of(one_against_rest, "classification", 2, "probabilities")).read(
            one_against_rest
        )
        np.testing.assert_allclose(read, [[2 / 11, 9 / 11], [0.5, 0.5]])

    @pytest.mark.parametrize("classes", [2, 3, 6])
    def test_as_many_numbers_as_classes(self, classes: int) -> None:
        with pytest.raises(InvalidData, match=f"with 4 numbers, and not with {classes}"):
            form_of(np.ones((5, 4)), "classification", classes)

    def test_a_value(self) -> None:
        assert Answering("y", 32, form_of(np.ones((3, 1)), "regression", 0)).read(np.ones((3, 1))).shape == (3,)

    def test_the_first_float_output_that_fits_answers(self) -> None:
        outputs = [Tensor("label", "INT64", (-1,)), Tensor("hidden", "FP32", (-1, 8)), Tensor("p", "FP32", (-1, 3))]
        found = answering_output(signature(outputs=outputs), None, "classification", 3)
        assert (found.output, found.batch) == ("p", 32)
        with pytest.raises(InvalidSpec, match="4 classes"):
            answering_output(signature(outputs=outputs), None, "classification", 4)
        with pytest.raises(InvalidSpec, match="one float a row"):
            answering_output(signature(outputs=outputs), "p", "regression", 0)


MEAN, STD = 0.3, 0.4


@pytest.fixture
def convolution(digits: pl.DataFrame, tmp_path: Path) -> Path:
    """A version folder: a logistic regression over scaled pixels, as a convolution that takes one picture a run."""
    rows = read_pixels(digits)
    fitted = LogisticRegression(max_iter=200).fit(rows.reshape(len(rows), -1), digits["label"].to_numpy())
    weights = [
        numpy_helper.from_array(fitted.coef_.reshape(10, 1, 8, 8).astype(np.float32), "W"),
        numpy_helper.from_array(fitted.intercept_.astype(np.float32), "b"),
    ]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "W", "b"], ["c"]), helper.make_node("Flatten", ["c"], ["logits"])],
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])],
        weights,
    )
    folder = tmp_path / "version"
    folder.mkdir()
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx"
    )
    own = signature(Tensor("x", "FP32", (1, 1, 8, 8)), outputs=[Tensor("logits", "FP32", (1, 10))], batched=False)
    (folder / "signature.json").write_text(json.dumps(own.to_json()))
    (folder / "card.json").write_text("{}")
    return folder


def read_pixels(digits: pl.DataFrame) -> np.ndarray[Any, np.dtype[np.float64]]:
    """As the owner of the model scales pictures."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - one use

    assert len(digits) == 1797
    pixels = (load_digits()["images"] * 15.9).astype(np.uint8)
    return np.asarray((pixels / 255 - MEAN) / STD)


@pytest.mark.parametrize("kind", ["evaluate", "compress"])
def test_pictures_are_scaled_as_the_mapping_says(
    make_job: MakeJob, digits: pl.DataFrame, convolution: Path, kind: str
) -> None:
    """One picture a run, since the graph takes no more; classes are told by their order, 0 to 9."""
    job = make_job(digits, data="image", kind=kind)
    scaled = {"task": "classification", "inputs": {"x": {"mean": [MEAN], "std": [STD]}}}
    job.spec = {"kind": kind, "model": "m", "version": 1, "dataset": "d@1", "mapping": scaled}
    convolution.rename(job.input / "model")
    if kind == "evaluate":
        job.spec |= {"slices": ["label"]}
        report = evaluate.run(job)
        assert {part["value"] for part in report["slices"]["label"]} == set("0123456789")
        assert report["metrics"]["fp32"]["accuracy"] > 0.98  # the rows that it was fitted on
        assert report["classes"] == [str(digit) for digit in range(10)]
        return
    result = compress.run(job)
    (variant,) = result["variants"]
    assert (variant["name"], variant["recipe"]["method"]) == ("int8", "static")
    assert variant["metrics"]["accuracy"] > 0.95
    assert variant["latency"]["batch"] == 1


def test_what_cannot_be_quantized_is_a_rejected_variant(make_job: MakeJob, cancer: pl.DataFrame) -> None:
    """Of a graph whose own names are those that the quantizer gives."""
    names = [name for name in cancer.columns if name != "target"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["p"]), helper.make_node("Mul", ["p", "W_quantized"], ["y"])],
        "taken",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 30])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        [
            numpy_helper.from_array(np.full((30, 1), 0.001, np.float32), "W"),
            numpy_helper.from_array(np.ones(1, np.float32), "W_quantized"),
        ],
    )
    job = make_job(cancer, kind="compress")
    classes = ["benign", "malignant"]
    given = {"task": "classification", "target": "target", "inputs": {"x": {"columns": names}}, "classes": classes}
    job.spec = {"kind": "compress", "model": "m", "version": 1, "dataset": "d@1", "mapping": given}
    folder = job.input / "model"
    folder.mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    own = signature(Tensor("x", "FP32", (-1, 30)), outputs=[Tensor("y", "FP32", (-1, 1))])
    (folder / "signature.json").write_text(json.dumps(own.to_json()))
    (folder / "card.json").write_text("{}")
    (variant,) = compress.run(job)["variants"]
    assert variant["state"] == "rejected"
    assert variant["reason"].startswith("it cannot be made"), variant


def test_too_few_rows_decide_nothing(make_job: MakeJob, digits: pl.DataFrame, convolution: Path) -> None:
    job = make_job(digits[:60], data="image", kind="compress")
    scaled = {"task": "classification", "inputs": {"x": {"mean": [MEAN], "std": [STD]}}}
    job.spec = {
        "kind": "compress", "model": "m", "version": 1, "dataset": "d@1", "mapping": scaled,
        "budget": {"max_metric_drop": 0.0},
    }  # fmt: skip
    convolution.rename(job.input / "model")
    (variant,) = compress.run(job)["variants"]
    assert (variant["state"], variant["path"]) == ("rejected", None)
    assert "6 validation rows say nothing" in variant["reason"]


def test_a_model_of_several_rows_a_run_cannot_be_judged(make_job: MakeJob) -> None:
    fixed = signature(Tensor("x", "FP32", (4, 1)), batched=False)
    with pytest.raises(InvalidSpec, match="takes 4 rows a run"):
        read_labelled(make_job(TestTables.FRAME), fixed, mapping({"x": ["half"]}))
