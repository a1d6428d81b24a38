"""Cheaper layers: what changes in a network, how its graph tells, and what a search makes of it."""

from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from app.core.signature import Signature, Tensor
from tests.unit.learning.test_compress_networks import TRAINING, MakeJob, accuracy, maker_of
from tests.unit.learning.test_text import reviews
from workers.compression.graphs import operators_of
from workers.compression.recipes import TRAINED
from workers.compression.space import WEIGHTS_ALONE, Space
from workers.export.runtime import open_session, predict
from workers.export.torch_graph import export_module
from workers.export.torch_weights import restore
from workers.training.cheaper import cheapen, cheapen_as

SHAPE = Signature("inference", (Tensor("x", "FP32", (-1, 6, 48)),), (Tensor("y", "FP32", (-1, 6, 3)),), ())


def network(seed: int) -> nn.Sequential:
    """Two layers of which the first has few directions that matter."""
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(48, 64), nn.GELU(), nn.Linear(64, 3)).eval()
    with torch.no_grad():
        made[0].weight.copy_(torch.randn(64, 4) @ torch.randn(4, 48) + 1e-3 * torch.randn(64, 48))
    return made


def test_a_layer_of_few_directions_becomes_two_that_answer_alike():
    full, rows = network(0), torch.randn(5, 6, 48)
    before = full(rows)
    assert cheapen(full, 0.999, relu=False) == 1
    assert [tuple(layer.weight.shape) for layer in full[0]] == [(4, 48), (64, 4)]
    assert isinstance(full[1], nn.GELU)
    assert isinstance(full[2], nn.Linear)  # it has three answers
    assert torch.allclose(full(rows), before, atol=0.1)
    assert cheapen(full, 0.9999999, relu=False) == 0


def test_a_cheaper_network_is_made_again_from_its_graph():
    full, rows = network(0), torch.randn(5, 6, 48)
    assert cheapen(full, 0.99, relu=True) == 2
    model = export_module(full, rows, SHAPE)
    assert operators_of(model) & {"Gelu", "Erf", "Relu"} == {"Relu"}
    again = network(1)
    cheapen_as(again, model, "")
    restore(again, model, "")
    told = predict(open_session(model.SerializeToString(), 1), {"x": rows.numpy()})
    np.testing.assert_allclose(again(rows).detach().numpy(), told, atol=1e-5)


def test_one_that_is_as_it_was_stays_so():
    full, again = network(0), network(1)
    cheapen_as(again, export_module(full, torch.randn(5, 6, 48), SHAPE), "")
    assert [type(layer) for layer in again] == [nn.Linear, nn.GELU, nn.Linear]


class QuickGELUActivation(nn.Module):
    """As some published weights have it: no operator of the graph is called after it."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values * torch.sigmoid(1.702 * values)


def test_an_activation_of_another_form_is_not_taken_for_a_cheap_one():
    full, again = network(0), network(1)
    full[1], again[1] = QuickGELUActivation(), QuickGELUActivation()
    cheapen_as(again, export_module(full, torch.randn(5, 6, 48), SHAPE), "")
    assert [type(layer) for layer in again] == [nn.Linear, QuickGELUActivation, nn.Linear]
    assert cheapen(full, None, relu=True) == 1
    cheapen_as(again, export_module(full, torch.randn(5, 6, 48), SHAPE), "")
    assert isinstance(again[1], nn.ReLU)


@pytest.mark.slow
def test_an_encoder_gets_cheaper_layers_and_learns(make_job: MakeJob, tmp_path: Path):
    params = {"depth": 2, "width": 32, "heads": 2, "max_tokens": 16, "dropout": 0.0}
    training = {**TRAINING, "epochs": 4}
    maker = maker_of(make_job(reviews(), family="transformer", params=params, training=training), tmp_path)
    space = Space.of(maker.material, maker.graph([]))
    assert list(space.choices["layers"]) == ["none", "ReLU", "rank 0.5"]
    step = {"step": "cheapen", "relu": True, "energy": 0.5}
    assert step["step"] in TRAINED
    short = {"step": "drop_layers", "keep": 1, "table_rank": None}
    rounded = {"step": "learn_rounding", "operators": ["MatMul", "Gemm"]}
    for before in ([], [short]):
        cheap = [*before, step]
        full, less = (Counter(node.op_type for node in maker.graph(recipe).graph.node) for recipe in (before, cheap))
        assert (full["Relu"], less["Relu"]) == (0, full["Gelu"])
        assert less["MatMul"] > full["MatMul"]
        assert len(maker.make(cheap)) < len(maker.make(before))
        assert accuracy(maker, cheap) > accuracy(maker, before) - 0.1
    int8 = [short, step, rounded, {"step": "fuse", "fast_gelu": True}, WEIGHTS_ALONE]
    assert accuracy(maker, int8) > accuracy(maker, [short]) - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vit", "convnext"])
def test_a_network_of_pictures_gets_cheaper_layers(
    make_job: MakeJob, digits: pl.DataFrame, tmp_path: Path, family: str
):
    params = {"depth": 2, "width": 32, "heads": 2, "dropout": 0.0} if family == "vit" else {"widths": [32, 64]}
    job = make_job(digits[:500], data="image", target="label", family=family, params=params, training=TRAINING)
    maker = maker_of(job, tmp_path)
    step = {"step": "cheapen", "relu": True, "energy": 0.5}
    assert operators_of(maker.graph([step])) & {"Gelu", "Erf", "Relu"} == {"Relu"}
    assert len(maker.make([step])) < len(maker.material.model)
    assert accuracy(maker, [step]) > accuracy(maker, []) - 0.1
    rounded = {"step": "learn_rounding", "operators": ["MatMul", "Gemm"]}
    assert accuracy(maker, [step, rounded]) > accuracy(maker, [step]) - 0.1
