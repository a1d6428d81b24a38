"""Cheaper layers in a trained network: linear layers as two of low rank, and ReLU in place of GELU."""

import onnx
import torch
from torch import nn

from workers.training.factors import SMALLEST, factors

_GELU = "GELU"  # in the names of torch's and transformers' classes


def cheapen(network: nn.Module, energy: float | None, *, relu: bool) -> int:
    """Change `network`, and say how many of its layers.

    Args:
        network: trained.
        energy: share of the squared singular values of each linear layer that two of lower rank keep, where these have
            fewer numbers; None: linear layers stay.
        relu: take ReLU for every GELU.
    """
    changed = _with_relu(network) if relu else 0
    return changed if energy is None else changed + _factor(network, energy)


def cheapen_as(network: nn.Module, model: onnx.ModelProto, prefix: str) -> None:
    """Give an untrained network the cheaper layers that the one had which `model` was exported from.

    Args:
        network: as its family makes it; it is changed.
        model: the exported graph.
        prefix: of the names of the network's parameters in the graph.
    """
    if sum(node.op_type == "Relu" for node in model.graph.node) >= len(_gelus(network)):
        _with_relu(network)
    names = {tensor.name for tensor in model.graph.initializer}
    for name, layer in _linear(network):
        if f"{prefix}{name}.1.bias" in names:
            network.set_submodule(name, nn.Sequential(*_two(layer, 1)))


def _factor(network: nn.Module, energy: float) -> int:
    changed = 0
    for name, layer in _linear(network):
        found = factors(layer.weight.detach().T.numpy(), energy) if min(layer.weight.shape) >= SMALLEST else None
        if found is not None:
            first, second = _two(layer, found.left.shape[1])
            first.weight = nn.Parameter(torch.from_numpy(found.left.T.copy()))
            second.weight = nn.Parameter(torch.from_numpy(found.right.T.copy()))
            second.bias = layer.bias
            network.set_submodule(name, nn.Sequential(first, second))
            changed += 1
    return changed


def _linear(network: nn.Module) -> list[tuple[str, nn.Linear]]:
    """Those whose bias tells them apart in a graph."""
    found = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return [(name, module) for name, module in found if module.bias is not None]


def _two(layer: nn.Linear, rank: int) -> tuple[nn.Linear, nn.Linear]:
    return nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features)


def _with_relu(network: nn.Module) -> int:
    found = _gelus(network)
    for name in found:
        network.set_submodule(name, nn.ReLU())
    return len(found)


def _gelus(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules(remove_duplicate=False) if _GELU in type(module).__name__]
