"""Channels that matter least leave a network, by Torch-Pruning's graph of which layers depend on each other."""

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
import torch_pruning as tp
from torch import Tensor, nn

_MULTIPLE = 8  # of channels: what vector instructions take at once
Rows = Sequence[tuple[Tensor, Tensor]]


def prune(network: nn.Module, keep: float, importance: Literal["taylor", "magnitude"], batches: Rows) -> None:
    """Keep a share of the channels of every layer, rounded to 8; inputs and answers stay.

    Args:
        network: of one input to logits [N, K] by a linear layer, its last one; it is changed.
        keep: the share.
        importance: `magnitude` is the norm of a channel's weights, `taylor` about how much the loss changes without it.
        batches: rows and their classes.
    """
    scores = {"taylor": tp.importance.GroupTaylorImportance, "magnitude": tp.importance.GroupMagnitudeImportance}
    network.eval()
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layers that may be empty, and of parameters that are no layer's
        pruner = tp.pruner.BasePruner(
            network, batches[0][0][:2], scores[importance](), pruning_ratio=1 - keep, ignored_layers=[last],
            round_to=_MULTIPLE,
        )  # fmt: skip
        if importance == "taylor":
            _set_gradients(network, batches)
        pruner.step()
    network.zero_grad()


def _set_gradients(network: nn.Module, batches: Rows) -> None:
    """Each parameter's gradient becomes the root of its mean square over batches.

    A trained network's mean gradient is near zero, however much each weight matters. For the same reason the loss is
    that of labels: towards its own answers a network has no gradient at all.
    """
    parameters = list(network.parameters())
    squares = [torch.zeros_like(parameter) for parameter in parameters]
    for rows, classes in batches:
        loss = nn.functional.cross_entropy(network(rows), classes)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        for square, gradient in zip(squares, gradients, strict=True):
            square.add_(gradient.square())
    for parameter, square in zip(parameters, squares, strict=True):
        parameter.grad = (square / len(batches)).sqrt()
