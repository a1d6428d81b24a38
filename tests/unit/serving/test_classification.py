"""The likeliest classes of an output as texts."""

import numpy as np
import pytest

from app.core.errors import InvalidTensor
from app.core.signature import Signature, Tensor
from app.serving.classification import classified

TENSOR = Tensor("probabilities", "FP32", (-1, 3))
SCORES = np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]], np.float32)


def signature(*, batched: bool = True, classes: tuple[str, ...] = ("a", "b", "c")) -> Signature:
    return Signature("classification", (), (TENSOR,), (), classes, batched=batched)


def test_best_first_with_labels():
    tensor, texts = classified(TENSOR, SCORES, 2, signature())
    assert (tensor.datatype, tensor.shape) == ("BYTES", (2, 2))
    assert texts.tolist() == [["0.700000:1:b", "0.200000:2:c"], ["0.500000:0:a", "0.250000:1:b"]]


def test_more_than_there_are():
    assert classified(TENSOR, SCORES, 100, signature())[1].shape == (2, 3)


def test_without_labels():
    assert classified(TENSOR, SCORES, 1, signature(classes=("x", "y")))[1].tolist() == [["0.700000:1"], ["0.500000:0"]]


def test_a_model_that_does_not_batch():
    tensor, texts = classified(TENSOR, SCORES, 2, signature(batched=False))
    assert (tensor.shape, texts.tolist()) == ((2,), ["0.700000:1", "0.500000:3"])


@pytest.mark.parametrize(
    ("dtype", "text"),
    [(np.int64, "9:1:b"), (np.uint8, "9:1:b"), (np.float16, "9.000000:1:b"), (np.float64, "9.000000:1:b")],
)
def test_any_number(dtype: type, text: str):
    assert classified(TENSOR, np.array([[3, 9, 0]], dtype), 1, signature())[1].tolist() == [[text]]


@pytest.mark.parametrize(
    ("values", "dtype", "best"),
    [
        ([2**54, 2**54 + 2, 2**54 + 4], np.int64, [f"{2**54 + 4}:2", f"{2**54 + 2}:1", f"{2**54}:0"]),
        ([2**54, 2**54 + 1, 2**54], np.int64, [f"{2**54 + 1}:1", f"{2**54}:0", f"{2**54}:2"]),
        ([-(2**63), 2**63 - 1, 0], np.int64, [f"{2**63 - 1}:1", "0:2", f"{-(2**63)}:0"]),
        ([0, 2**64 - 1, 2**64 - 2], np.uint64, [f"{2**64 - 1}:1", f"{2**64 - 2}:2", "0:0"]),
    ],
)
def test_integers_are_exact(values: list[int], dtype: type, best: list[str]):
    assert classified(TENSOR, np.array([values], dtype), 3, signature(classes=()))[1].tolist() == [best]


def test_nan_is_last_and_equals_keep_their_order():
    scores = np.array([[np.nan, 0.5, 0.5]], np.float32)
    assert classified(TENSOR, scores, 3, signature(classes=()))[1].tolist() == [["0.500000:1", "0.500000:2", "nan:0"]]


def test_texts_have_no_order():
    with pytest.raises(InvalidTensor, match="no order"):
        classified(Tensor("words", "BYTES", (-1,)), np.array(["a"], object), 1, signature())
