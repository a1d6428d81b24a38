"""Imported models of pictures: a small network learns their answers, and takes their place as they are."""

import json
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
from sklearn.neural_network import MLPClassifier

from app.core.signature import ImageFormat, Signature, Tensor
from app.specs.jobs import CompressSpec
from tests.unit.learning.test_foreign_tables import ends, run
from workers.compression.foreign_pictures import is_picture, picture_student
from workers.compression.material import Material
from workers.compression.recipes import Maker
from workers.compression.space import Space
from workers.compression.teaching import NoTime
from workers.data.images import decode_all
from workers.evaluation.answers import Answering
from workers.export.graph import Graph
from workers.jobs.judged_rows import judged_rows
from workers.jobs.judging import Version

MakeJob = Callable[..., Any]
MEAN, STD = 0.3, 0.5
DIGITS = [str(digit) for digit in range(10)]


def full_model(pictures: np.ndarray, labels: list[str], datatype: str) -> onnx.ModelProto:
    """A perceptron of 600 units over pixels, which takes scaled floats or bytes, and tells logits and the label."""
    scaled = (pictures.reshape(len(pictures), -1) / 255 - MEAN) / STD
    fitted = MLPClassifier(600, tol=0.02, random_state=0).fit(scaled, labels)
    graph = Graph()
    value = graph.add("Reshape", "picture", graph.constant([0, -1], np.int64))
    if datatype == "UINT8":
        value = graph.add("Cast", value, to=onnx.TensorProto.FLOAT)
        value = graph.add("Div", value, graph.constant(255, np.float32))
        value = graph.add("Sub", value, graph.constant(MEAN, np.float32))
        value = graph.add("Div", value, graph.constant(STD, np.float32))
    for at, (weight, bias) in enumerate(zip(fitted.coefs_, fitted.intercepts_, strict=True)):
        value = graph.add("MatMul", value, graph.constant(weight, np.float32))
        value = graph.add("Add", value, graph.constant(bias, np.float32), output="scores" if at else None)
        value = value if at else graph.add("Relu", value)
    graph.add("ArgMax", "scores", axis=1, keepdims=0, output="digit")
    outputs = [Tensor("scores", "FP32", (-1, 10)), Tensor("digit", "INT64", (-1,))]
    return graph.model([Tensor("picture", datatype, (-1, 1, 8, 8))], outputs)  # type: ignore[arg-type] # one of two


@pytest.mark.slow
@pytest.mark.parametrize("datatype", ["FP32", "UINT8"])
def test_a_network_learns_what_an_imported_one_answers(
    make_job: MakeJob, digits: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, datatype: Any
):
    """Read in parts, and timed first, as many pictures are."""
    monkeypatch.setattr("workers.compression.foreign_pictures._STEPS", 150)
    monkeypatch.setattr("workers.compression.foreign_pictures._TIMED", (1, 2))
    monkeypatch.setattr("workers.compression.material._PART_BYTES", 100 * 64 * np.dtype(np.float32).itemsize)
    scaling = {"mean": [MEAN], "std": [STD]} if datatype == "FP32" else {}
    job = make_job(digits, data="image", kind="compress")
    job.spec = {
        "kind": "compress", "model": "m", "version": 1, "dataset": "d@1",
        "mapping": {"task": "classification", "inputs": {"picture": scaling}, "classes": DIGITS},
    }  # fmt: skip
    pictures = np.asarray(decode_all(job.input / "dataset" / "data.parquet", ImageFormat("L", 8, 8), len(digits), job))
    model = full_model(pictures, digits["label"].to_list(), datatype)
    outputs = (Tensor("scores", "FP32", (-1, 10)), Tensor("digit", "INT64", (-1,)))
    signature = Signature("inference", (Tensor("picture", datatype, (-1, 1, 8, 8)),), outputs, ())
    folder = job.input / "model"
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    (folder / "signature.json").write_text(json.dumps(signature.to_json()))
    (folder / "card.json").write_text("{}")
    version = Version(folder)
    prepared, judge, _ = judged_rows(job, CompressSpec.model_validate(job.spec), version, version.base())
    material = Material(version.base(), prepared, judge, 0, tmp_path, None, job)
    space, maker = Space.of(material, model), Maker(material)
    assert list(space.choices["student"]) == ["none", "small network", "medium network"]
    with pytest.raises(NoTime, match="asking the full model takes too much"):
        picture_student(material, "small", monotonic() - 1)
    picked = {**{name: options[0] for name, options in space.choices.items()}, "student": "small network"}
    recipe = space.recipe(picked)
    assert recipe is not None
    small = maker.graph(recipe)
    assert ends(small) == ends(model)
    assert not (job.folder / "trials").exists()  # nothing of it is left, nor of the clocks
    told = {"picture": prepared.inputs["picture"][prepared.split.test]}
    (scores, digit), (small_scores, small_digit) = run(model, told), run(small, told)
    assert small_digit.tolist() == small_scores.argmax(axis=1).tolist()
    assert (digit == small_digit).mean() > 0.9
    assert (scores.dtype, scores.shape) == (small_scores.dtype, small_scores.shape)


def test_what_no_network_can_take_the_place_of():
    picture, answer = Tensor("x", "FP32", (-1, 3, 8, 8)), Tensor("p", "FP32", (-1, 2))
    answering = Answering("p", 1, "probabilities")
    for inputs, outputs in (
        ((Tensor("x", "FP32", (-1, 3, -1, 8)),), (answer,)),  # of any height
        ((Tensor("x", "FP32", (-1, 12)),), (answer,)),
        ((picture, Tensor("y", "FP32", (-1, 1))), (answer,)),
        ((picture,), (answer, Tensor("features", "FP32", (-1, 100)))),
    ):
        assert not is_picture(Signature("inference", inputs, outputs, ()), answering, "classification")
    halves = Tensor("x", "BF16", picture.shape)
    assert not is_picture(Signature("inference", (halves,), (answer,), ()), answering, "classification")
    assert not is_picture(Signature("inference", (picture,), (answer,), ()), answering, "regression")
    assert is_picture(Signature("inference", (picture,), (answer,), ()), answering, "classification")
