"""Combinations of models: what they find, and that their graphs do what they do."""

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score, root_mean_squared_error

from app.core.signature import Tensor
from workers.automl.choose import choose
from workers.automl.combine import Combination, Weighted, best_single, calibrated, greedy, least_squares, stack
from workers.automl.score import log_likelihood, scorer
from workers.export.graph import Graph
from workers.export.runtime import open_session

SEED = 11


def _answers(rows: int, classes: int, noises: list[float]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Targets, and probabilities of models that see the truth through noise of their own."""
    rng = np.random.default_rng(SEED)
    truth = rng.normal(size=(rows, classes)) * 2
    y = np.asarray([rng.choice(classes, p=p) for p in softmax(truth, axis=1)])
    seen = [softmax(truth + rng.normal(size=truth.shape) * noise, axis=1) for noise in noises]
    return y, [answer.astype(np.float32) for answer in seen]


@pytest.mark.parametrize("classes", [2, 4])
def test_quick_scores_are_those_of_scikit_learn(classes: int):
    y, (answers,) = _answers(500, classes, [1.0])
    area = roc_auc_score(y, answers[:, 1]) if classes == 2 else roc_auc_score(y, answers, multi_class="ovr")
    assert scorer("roc_auc", "classification", y)(y, answers) == pytest.approx(area)
    assert scorer("log_loss", "classification", y)(y, answers) == pytest.approx(-log_loss(y, answers), rel=1e-5)
    assert scorer("accuracy", "classification", y)(y, answers) == pytest.approx(
        accuracy_score(y, answers.argmax(axis=1)), abs=1e-3
    )
    assert scorer("f1", "classification", y)(y, answers) > 0.4  # one that is not quick
    values = np.random.default_rng(SEED).normal(size=500)
    wanted = -root_mean_squared_error(y, values)
    assert scorer("rmse", "regression", y)(y, values) == pytest.approx(wanted)


@pytest.mark.parametrize("most", [1, 2, 5])
def test_the_greedy_walk_is_never_worse_than_the_best_and_keeps_the_limit(most: int):
    y, answers = _answers(800, 3, [2.0, 0.6, 1.1, 1.2, 4.0])
    score = scorer("log_loss", "classification", y)
    best, mixed = best_single(answers, y, score), greedy(answers, y, score, most)
    assert best.weights == (0, 1, 0, 0, 0)
    assert sum(mixed.weights) == pytest.approx(1)
    assert sum(weight > 0 for weight in mixed.weights) <= most
    assert score(y, mixed.apply(answers)) >= score(y, best.apply(answers))
    assert (mixed.weights == best.weights) == (most == 1)


def test_the_temperature_undoes_confidence_that_is_not_earned():
    y, [honest] = _answers(4000, 3, [0.0])
    sure = softmax(np.log(honest) * 2, axis=1)
    found = calibrated(Weighted((1.0,)), [sure], y)
    assert found.temperature == pytest.approx(2, rel=0.1)
    assert log_likelihood(y, found.apply([sure])) > log_likelihood(y, sure) + 0.05
    assert np.array_equal(found.apply([sure]).argmax(axis=1), sure.argmax(axis=1))


def test_least_squares_finds_the_parts_of_a_sum():
    first, second, noise = np.random.default_rng(SEED).normal(size=(3, 300))
    found = least_squares([first, noise, second], 0.3 * first + 0.6 * second, 2)
    assert found is not None
    assert found.weights == pytest.approx((0.3, 0, 0.6), abs=1e-6)
    single = least_squares([first, noise, second], second, 1)
    assert single is not None
    assert sum(weight > 0 for weight in single.weights) == 1


def test_answers_that_go_against_the_targets_are_not_left_without_a_weight():
    """As means of other folds do, where there is nothing to learn: a constant 0 would score best, and is no model."""
    y = np.random.default_rng(SEED).normal(size=400)
    answers = [-0.05 * y, -0.1 * y]
    assert least_squares(answers, y, 2) is None
    choice = choose(answers, y, "rmse", "regression", 2, 0)
    assert sum(choice.combination.weights) == pytest.approx(1)
    assert "least squares" not in choice.scores


def _run(combination: Combination, answers: list[np.ndarray], output: str) -> np.ndarray:
    """What the graph of a combination says of these answers."""
    graph = Graph()
    used = [m for m, weight in enumerate(combination.weights) if weight]
    shape = (-1, *answers[0].shape[1:])
    inputs = [Tensor(f"a{m}", "FP32", shape) for m in used]
    combination.to_nodes(graph, [tensor.name for tensor in inputs], output)
    session = open_session(graph.model(inputs, [Tensor(output, "FP32", shape)]).SerializeToString(), 1)
    return np.asarray(session.run(None, {f"a{m}": answers[m].astype(np.float32) for m in used})[0])


@pytest.mark.parametrize("classes", [2, 3])
def test_the_graph_of_probabilities_does_the_same(classes: int):
    y, answers = _answers(400, classes, [1.0, 0.5, 2.0])
    answers[1][0] = np.eye(classes)[0]  # sure, and so without a logarithm of the others
    stacked = stack(answers, y, (0.5, 0.5, 0.0))
    assert stacked is not None
    for combination in (Weighted((0.25, 0.0, 0.75)), Weighted((0.5, 0.5, 0.0), 1.7), stacked):
        np.testing.assert_allclose(_run(combination, answers, "probabilities"), combination.apply(answers), atol=2e-6)


def test_the_graph_of_values_does_the_same():
    answers = list(np.random.default_rng(SEED).normal(size=(3, 50)).astype(np.float32))
    combination = Weighted((0.2, 0.0, 0.9))
    np.testing.assert_allclose(_run(combination, answers, "value"), combination.apply(answers), atol=1e-6)


def test_stacking_wants_rows_of_every_class_and_few_columns():
    y, answers = _answers(200, 3, [1.0, 1.0])
    assert stack(answers, np.minimum(y, 1), (0.5, 0.5)) is None
    many = [np.full((200, 40), 1 / 40)] * 2
    assert stack(many, np.arange(200) % 40, (0.5, 0.5)) is None


def test_the_choice_goes_by_rows_that_were_not_fitted_on():
    y, answers = _answers(3000, 2, [1.0, 1.1, 1.2, 5.0])
    choice = choose(answers, y, "log_loss", "classification", 3, 0)
    assert choice.scores[choice.name] == min(choice.scores.values())  # of an error the smallest
    assert choice.scores[choice.name] < min(choice.members)
    assert "log_loss" in choice.why
    assert choose(answers[:1], y, "log_loss", "classification", 3, 0).name == "best model"


def test_a_stack_mends_a_model_that_is_wrong_the_same_way_everywhere():
    rng = np.random.default_rng(SEED)
    logit = rng.normal(size=4000) * 2
    y = (rng.random(4000) < expit(logit)).astype(int)
    off = expit(logit + 2.5)
    answers = [np.stack([1 - off, off], axis=1), np.stack([expit(-logit / 9), expit(logit / 9)], axis=1)]
    choice = choose(answers, y, "log_loss", "classification", 2, 0)
    assert choice.name == "stacked"
    assert choice.scores["stacked"] < choice.scores["weighted mean"] - 0.01
