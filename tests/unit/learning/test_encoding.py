from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.core.signature import Column, Signature, Tensor
from workers.export.graph import Graph
from workers.export.runtime import open_session
from workers.export.trees import Ensemble, floor_float32
from workers.families import network
from workers.families.encoding import CategoryEncoder, DenseEncoder, NumericEncoder, TreeEncoder
from workers.families.pairs import interacting
from workers.learning import LearningData, Part

NUMERIC = np.asarray([[1, np.nan], [3, 10], [5, 30], [7, 20]], np.float32)
CATEGORICAL = np.asarray([["a", "x"], ["b", ""], ["a", "x"], ["c", "y"]], object)
LABELS = np.asarray([1, 0, 1, 0])
TENSORS = (Tensor("numeric", "FP32", (-1, 2)), Tensor("categorical", "BYTES", (-1, 2)))
COLUMNS = (
    Column("n", "number", "numeric", 0), Column("o", "number", "numeric", 1, nullable=True),
    Column("c", "category", "categorical", 0), Column("d", "category", "categorical", 1, nullable=True),
)  # fmt: skip
UNSEEN = {
    "numeric": np.asarray([[np.nan, np.nan], [100, -5]], np.float32),
    "categorical": np.asarray([["z", ""], ["", "q"]], object),
}


@pytest.fixture
def data() -> LearningData:
    output = (Tensor("probabilities", "FP32", (-1, 2)),)
    part = Part({"numeric": NUMERIC, "categorical": CATEGORICAL}, LABELS)
    return LearningData(Signature("classification", TENSORS, output, COLUMNS, ("no", "yes")), part, part)


def _session(graph: Graph, outputs: tuple[Tensor, ...]) -> ort.InferenceSession:
    return open_session(graph.model(TENSORS, outputs).SerializeToString(), 1)


def test_missing_numbers_are_filled_with_the_median(data: LearningData):
    encoder = NumericEncoder.fit(data, keep_missing=False)
    assert encoder.fill.tolist() == [4.0, 20.0]
    assert encoder.transform(np.asarray([[0, np.nan], [np.nan, 2]], np.float32)).tolist() == [[0, 20], [4, 2]]


def test_gaps_that_training_knows_can_be_left_to_the_model(data: LearningData):
    encoder = NumericEncoder.fit(data, keep_missing=True)
    assert encoder.fill[0] == 4.0
    assert np.isnan(encoder.fill[1])


def test_codes_go_by_frequency_and_unseen_is_last():
    encoder = CategoryEncoder.fit(CATEGORICAL)
    assert encoder.categories == (("a", "b", "c"), ("x", "", "y"))
    assert encoder.codes(UNSEEN["categorical"]).tolist() == [[3, 1], [3, 3]]


def test_category_values_are_smoothed_means_about_the_overall_mean(data: LearningData):
    encoder, _ = TreeEncoder.learn(data, keep_missing=True)
    # 'a': two rows, both 1, overall mean 0.5: (0.5 + 0.5) / (2 + 20); 'b', 'c': one row with 0: -0.5 / 21; unseen: 0.
    assert encoder.tables[0] == pytest.approx([1 / 22, -0.5 / 21, -0.5 / 21, 0.0])


def test_a_training_row_is_valued_by_other_rows():
    """Every row has a category of its own, whose mean is its target: nothing can be learnt from that."""
    y = np.arange(200) % 2
    part = Part({"categorical": np.asarray([[f"id-{i}"] for i in range(200)], object)}, y)
    column, output = Column("c", "category", "categorical", 0), Tensor("probabilities", "FP32", (-1, 2))
    tensor = Tensor("categorical", "BYTES", (-1, 1))
    data = LearningData(Signature("classification", (tensor,), (output,), (column,), ("no", "yes")), part, part)
    encoder, x = TreeEncoder.learn(data, keep_missing=False)
    assert np.abs(x).max() == 0
    assert np.sign(encoder.transform(part.inputs)[:, 0]).tolist() == (y * 2 - 1).tolist()


@pytest.mark.parametrize("classes", [0, 2, 3])
def test_frequent_categories_are_valued_alike_in_training_and_later(classes: int):
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 4, 4000)
    y = kinds + rng.normal(0, 0.5, 4000) if not classes else np.minimum(kinds, classes - 1)
    part = Part({"categorical": np.asarray([[f"k{kind}"] for kind in kinds], object)}, y)
    column, output = Column("c", "category", "categorical", 0), Tensor("probabilities", "FP32", (-1, 2))
    task, tensor = "classification" if classes else "regression", Tensor("categorical", "BYTES", (-1, 1))
    names = tuple(str(i) for i in range(classes))
    data = LearningData(Signature(task, (tensor,), (output,), (column,), names), part, part)
    encoder, x = TreeEncoder.learn(data, keep_missing=False)
    assert np.abs(x - encoder.transform(part.inputs)).max() < 0.05


def test_tree_features_are_the_same_in_the_graph(data: LearningData):
    encoder, _ = TreeEncoder.learn(data, keep_missing=True)
    graph = Graph()
    graph.add("Identity", encoder.to_nodes(graph), output="features")
    session = _session(graph, (Tensor("features", "FP32", (-1, 4)),))
    for inputs in (data.train.inputs, UNSEEN):
        (answer,) = session.run(None, dict(inputs))
        assert np.array_equal(answer, encoder.transform(inputs), equal_nan=True)


def test_categories_may_have_a_feature_each(data: LearningData):
    encoder, x = TreeEncoder.learn(data, keep_missing=True, one_hot=3)
    assert encoder.shown == ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2))
    assert x[:, 4:].tolist() == [[1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 1, 0], [1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 1]]
    assert not TreeEncoder.learn(data, keep_missing=True, one_hot=2)[0].shown
    graph = Graph()
    graph.add("Identity", encoder.to_nodes(graph), output="features")
    session = _session(graph, (Tensor("features", "FP32", (-1, 10)),))
    for inputs in (data.train.inputs, UNSEEN):
        (answer,) = session.run(None, dict(inputs))
        assert np.array_equal(answer, encoder.transform(inputs), equal_nan=True)


def test_dense_features_are_the_same_in_the_graph(data: LearningData):
    encoder = DenseEncoder.fit(data)
    graph = Graph()
    dense, rows = encoder.to_nodes(graph)
    assert dense is not None
    assert rows is not None
    graph.add("Identity", dense, output="dense")
    graph.add("Identity", rows, output="rows")
    assert (encoder.width, encoder.table_rows, encoder.unseen_rows().tolist()) == (3, 8, [3, 7])
    session = _session(graph, (Tensor("dense", "FP32", (-1, 3)), Tensor("rows", "INT64", (-1, 2))))
    for inputs in (data.train.inputs, UNSEEN):
        answers = session.run(None, dict(inputs))
        for answer, expected in zip(answers, encoder.transform(inputs), strict=True):
            assert np.allclose(answer, expected, atol=1e-6)


@given(st.floats(-1e30, 1e30), st.floats(width=32, allow_nan=False))
def test_a_float32_meets_the_floored_threshold_when_it_meets_the_threshold(threshold: float, x: float):
    floored = floor_float32(np.asarray([threshold]))[0]
    assert (x <= float(floored)) == (x <= threshold)
    assert (float(floored) <= float(floored)) == (float(floored) <= threshold)


def test_small_numbers_are_standardised_and_constant_ones_are_not(data: LearningData):
    x = np.asarray([[0.1, 1e-3, 1e-20, 1e-44, 1e9]] * 4, np.float32)
    x[:, 2] *= [1, 2, 3, 4]
    x[2:, 3] = 0
    x[2:, 4] += 64
    found = DenseEncoder.fit(replace(data, train=Part({"numeric": x}, LABELS))).transform({"numeric": x})[0]
    np.testing.assert_allclose(found.std(axis=0), [0, 0, 1, 0, 1], rtol=1e-4, atol=1e-6)


def test_an_unseen_category_is_settled_only_where_training_met_none():
    """The second column's rare values, and of the rows on disk one of the third, share the row of unseen ones."""
    texts = np.asarray([["a", "x", "k"], ["b", "y", "k"], ["a", "x", "l"]], object)
    encoder = DenseEncoder(
        None, np.zeros(0, np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64),
        CategoryEncoder((("a", "b"), ("x",), ("k", "l"))),
    )  # fmt: skip
    on_disk = SimpleNamespace(sizes=(3,), read=lambda _: Part({"categorical": texts[::-1, [0, 1, 1]]}, LABELS[:3]))
    rows = torch.from_numpy(encoder.transform({"categorical": texts})[1])
    for streamed, settled in ((None, [2, 7]), (on_disk, [2])):
        table = torch.nn.Embedding(8, 4)
        before = table.weight.detach().clone()
        network._settle_unseen(table, encoder, rows, streamed)  # type: ignore[arg-type]  # read and sizes are enough
        assert (table.weight != before).any(dim=1).nonzero()[:, 0].tolist() == settled
        torch.testing.assert_close(table.weight[2], (2 * before[0] + before[1]) / 3)


def test_a_tree_sends_rows_and_gaps_as_it_says():
    ensemble = Ensemble(n_targets=2)
    ensemble.add_tree(
        feature=np.asarray([1, 0, 0]), threshold=np.asarray([0.5, 0, 0]), left=np.asarray([1, 0, 0]),
        right=np.asarray([2, 0, 0]), missing_left=np.asarray([True, False, False]),
        leaf=np.asarray([False, True, True]),
        weights=np.asarray([[0, 0], [1, 2], [3, 4.0]]),
    )  # fmt: skip
    graph = Graph()
    graph.add("Identity", ensemble.to_node(graph, "numeric"), output="scores")
    model = graph.model(TENSORS[:1], (Tensor("scores", "FP32", (-1, 2)),)).SerializeToString()
    rows = np.asarray([[9, 0.5], [9, 0.6], [9, np.nan]], np.float32)
    assert open_session(model, 1).run(None, {"numeric": rows})[0].tolist() == [[1, 2], [3, 4], [1, 2]]


def test_pairs_of_numbers_have_their_sum_and_difference_in_the_graph_too(data: LearningData):
    learnt, x = TreeEncoder.learn(data, keep_missing=True, one_hot=3)
    encoder, wider = learnt.with_pairs(np.asarray([[0, 1]]), x)
    assert np.array_equal(wider[:, :-2], x, equal_nan=True)
    spreads = np.std([1, 3, 5, 7]), np.std([10, 30, 20])
    first, second = NUMERIC[1] / spreads
    np.testing.assert_allclose(wider[1, -2:], [first + second, first - second], rtol=1e-6)
    assert np.isnan(wider[0, -2:]).all()  # where one of them is missing
    graph = Graph()
    graph.add("Identity", encoder.to_nodes(graph), output="features")
    session = _session(graph, (Tensor("features", "FP32", (-1, wider.shape[1])),))
    for inputs in (data.train.inputs, UNSEEN):
        (answer,) = session.run(None, dict(inputs))
        assert np.array_equal(answer, encoder.transform(inputs), equal_nan=True)


def test_values_of_numbers_are_how_the_target_goes_with_them_in_the_graph_too():
    """Of columns whose numbers come again: not of two values, of too many, or of too few rows each."""
    rng = np.random.default_rng(2)
    rate = rng.choice([0.1, -3.5, 1e7, np.nan], 400)
    rare = np.where(np.arange(400) < 350, np.nan, np.arange(400) % 8)  # six rows each
    x = np.stack([rate, rng.normal(size=400), rng.integers(0, 2, 400), rare], 1).astype(np.float32)
    y = np.where(rate == 0.1, 1, np.where(rate > 1, 0, rng.integers(0, 2, 400)))
    part = Part({"numeric": x}, y)
    tensors, output = (Tensor("numeric", "FP32", (-1, 4)),), (Tensor("probabilities", "FP32", (-1, 2)),)
    signature = Signature("classification", tensors, output, (), ("no", "yes"))
    data = LearningData(signature, part, part)
    learnt, features = TreeEncoder.learn(data, keep_missing=True)
    encoder, wider = learnt.with_values(10, data, features)
    assert encoder.values is not None
    assert encoder.values.columns == (0,)
    count, overall = (rate == 0.1).sum(), y.mean()
    others = np.asarray([[2.5, 0, 0, 0], [np.nan, 0, 0, 0], [0.1, 0, 0, 0]], np.float32)
    told = encoder.transform({"numeric": others})[:, -1]
    np.testing.assert_allclose(told, [0, 0, (1 - overall) * count / (count + 20)], rtol=1e-5)
    assert np.array_equal(wider, encoder.transform({"numeric": x}), equal_nan=True)
    graph = Graph()
    graph.add("Identity", encoder.to_nodes(graph), output="features")
    model = graph.model(tensors, (Tensor("features", "FP32", (-1, wider.shape[1])),)).SerializeToString()
    for rows in (x, others):
        (answer,) = open_session(model, 1).run(None, {"numeric": rows})
        assert np.array_equal(answer, encoder.transform({"numeric": rows}), equal_nan=True)
    assert learnt.with_values(2, data, features) == (learnt, features)


def test_numbers_that_trees_split_together_are_found():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2000, 5)).astype(np.float32)
    y = np.sign(x[:, 1] + x[:, 3]) + 0.3 * x[:, 0] + 2 * np.sign(x[:, 4] - x[:, 2])
    settings = {"objective": "regression", "seed": 0, "num_threads": 1, "verbosity": -1}
    assert sorted(interacting(x, y, 5, 2, settings).tolist()) == [[1, 3], [2, 4]]
    assert interacting(x, y, 4, 1, settings).tolist() == [[1, 3]]  # the last feature is none of the numbers
    assert interacting(x[:, :1], y, 1, 3, settings).shape == (0, 2)
    assert interacting(x[:10], y[:10], 5, 3, settings).shape == (0, 2)  # too few rows to split twice
