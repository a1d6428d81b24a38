"""From a model's scores to its answers: in numpy, and as the end of a graph."""

import numpy as np
import onnx
from scipy.special import expit, softmax  # type: ignore[import-untyped]  # no stubs

from workers.export.graph import Graph, binary_probabilities, value_output
from workers.learning import Array, LearningData


def answers_of(data: LearningData, scores: Array) -> Array:
    """Probabilities [N, K] of logits, which add up to one if one class is right, or values [N] of standardised ones.

    Args:
        data: task and the target's unit.
        scores: [N, K]; [N, 1] for values, or for two classes the logit of the second.
    """
    if data.task == "regression":
        return data.standard.restore(scores[:, 0])
    if data.task == "multilabel":
        return np.asarray(expit(scores))
    if scores.shape[1] == 1:
        second = expit(scores)
        return np.concatenate([1 - second, second], axis=1)
    return np.asarray(softmax(scores, axis=1))


def answering_model(graph: Graph, score: str, data: LearningData, columns: int) -> onnx.ModelProto:
    """The graph with its output, from a score of `columns` columns, as `answers_of` reads them."""
    if data.task == "regression":
        value_output(graph, score, data.standard.mean, data.standard.scale)
    elif data.task == "multilabel":
        graph.add("Sigmoid", score, output="probabilities")
    elif columns == 1:
        binary_probabilities(graph, score, is_probability=False)
    else:
        graph.add("Softmax", score, axis=1, output="probabilities")
    return graph.model(data.signature.inputs, data.signature.outputs)
