"""Trained weights back from a graph that torch's exporter made, into a network of the same layers."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from app.core.errors import AimassError
from workers.learning import Array

Folded = dict[nn.Conv2d, nn.BatchNorm2d]


class Unreadable(AimassError):
    """A graph does not hold a network's weights."""


def restore(network: nn.Module, model: onnx.ModelProto, prefix: str, *, frozen: bool = False) -> None:
    """Give `network` the weights of `model`; layers that were pruned get the size they have there.

    The exporter keeps the names of parameters, but for two. A linear layer over sequences is a product with an unnamed
    matrix; these come in the order of the layers. A batch norm behind a convolution is folded into it; here it becomes
    one that only adds the convolution's bias, until `settle_norms`. Equal vectors, such as biases of layers whose
    answers are added, have one name; a convolution's bias is therefore what its node reads.

    Args:
        network: as the family makes it, with any weights; it is changed, and left in evaluation mode.
        model: the exported graph.
        prefix: of the names of the network's parameters in the graph.
        frozen: most of its weights were not to learn; vectors whose names are not there stay as they are.

    Raises:
        Unreadable: a parameter is not there.
    """
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    arrays = {name.removeprefix(prefix): _array(t) for name, t in found.items() if name.startswith(prefix)}
    products = iter(
        _array(found[node.input[1]]) for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in found
    )
    biases = {node.input[1]: node.input[2] for node in model.graph.node if node.op_type == "Conv" and node.input[2:]}
    norms = norms_of(network)
    names = {module: name for name, module in network.named_modules()}
    try:
        for module, name in names.items():
            if isinstance(module, nn.Linear) and f"{name}.weight" not in arrays:
                arrays[f"{name}.weight"] = _next(products, f"{name}.weight").T
            if isinstance(module, nn.Conv2d):
                bias = found.get(biases.get(f"{prefix}{name}.weight", ""))
                shift = None if bias is None else _array(bias)
                _set_convolution(module, norms.get(module), arrays[f"{name}.weight"], shift)
            elif module not in norms.values():
                for part, now in list(module.named_parameters(recurse=False)):
                    full = f"{name}.{part}".removeprefix(".")
                    if not (frozen and now.ndim == 1 and full not in arrays):
                        module.register_parameter(part, _parameter(arrays[full]))
                _set_sizes(module)
    except KeyError as error:
        raise Unreadable(f"the weights of this graph cannot be read back: {error} is not there") from None
    network.eval()


def attention_layers(model: onnx.ModelProto) -> int:
    """How many times something is weighed by a softmax. Names do not say it: equal weights of two layers have one."""
    factors = {name for node in model.graph.node if node.op_type == "MatMul" for name in node.input}
    return sum(node.op_type == "Softmax" and node.output[0] in factors for node in model.graph.node)


def keep_layers(network: nn.Module, name: str, keep: int) -> None:
    """Let the list of layers of this name keep so many, evenly spaced from the first; it is changed."""
    room, _, last = name.rpartition(".")
    layers = list(network.get_submodule(name).children())
    kept = nn.ModuleList([layers[at * len(layers) // keep] for at in range(keep)])
    network.get_submodule(room).register_module(last, kept)


def norms_of(network: nn.Module) -> Folded:
    """The batch norm of each convolution that has one, which is the module that follows it."""
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)]
    return {a: b for a, b in pairwise(layers) if isinstance(a, nn.Conv2d) and isinstance(b, nn.BatchNorm2d)}


def settle_norms(network: nn.Module, batches: list[tuple[Tensor, ...]]) -> None:
    """Let restored batch norms know mean and variance of what they see, as if trained; answers stay as they are.

    Args:
        network: restored, in evaluation mode.
        batches: real rows, each the network's inputs.
    """
    seen: dict[nn.BatchNorm2d, list[tuple[int, Tensor, Tensor]]] = {norm: [] for norm in norms_of(network).values()}
    if not seen:
        return

    def look(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        values = given[0].double()
        count = values.numel() // values.shape[1]
        seen[norm].append((count, values.sum((0, 2, 3)), values.square().sum((0, 2, 3))))  # type: ignore[index]

    hooks = [norm.register_forward_pre_hook(look) for norm in seen]
    with torch.no_grad():
        for batch in batches:
            network(*batch)
    for hook in hooks:
        hook.remove()
    for norm, sums in seen.items():
        count, total, squares = (sum(part) for part in zip(*sums, strict=True))
        mean = total / count
        _set_norm(norm, mean, (squares / count - mean.square()).clamp(min=0), norm.bias.detach())


def fold_norms(network: nn.Module) -> None:
    """Put every batch norm into its convolution, as the exporter does."""
    norms = norms_of(network)
    for convolution, norm in norms.items():
        fused = torch.nn.utils.fuse_conv_bn_eval(convolution, norm)
        convolution.weight, convolution.bias = fused.weight, fused.bias
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if child in norms.values():
                setattr(module, name, nn.Identity())


def _set_convolution(module: nn.Conv2d, norm: nn.BatchNorm2d | None, weight: Array, bias: Array | None) -> None:
    """Weights [out, in / groups, h, w]; the bias goes to the batch norm, if there is one."""
    if module.groups > 1:  # each channel by itself
        module.groups = weight.shape[0] // weight.shape[1]
    module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
    module.weight = _parameter(weight)
    shift = np.zeros(weight.shape[0], np.float32) if bias is None else bias
    if norm is None:
        module.bias = None if module.bias is None else _parameter(shift)
        return
    if module.bias is not None:
        module.bias = _parameter(np.zeros_like(shift))
    norm.num_features = len(shift)
    like = torch.zeros(len(shift), dtype=torch.float64)
    _set_norm(norm, like, like + 1, torch.from_numpy(np.array(shift)))


def _set_norm(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, shift: Tensor) -> None:
    """That this norm sees values of this mean and variance, and only adds `shift` to them."""
    norm.running_mean, norm.running_var = mean.float(), variance.float()
    norm.weight = nn.Parameter((norm.running_var + norm.eps).sqrt())
    norm.bias = nn.Parameter((mean + shift.double()).float())


def _set_sizes(module: nn.Module) -> None:
    """Let a layer say the size that its weights have."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)


def _next(arrays: Iterator[Array], name: str) -> Array:
    found = next(arrays, None)
    if found is None:
        raise KeyError(name)
    return found


def _array(tensor: onnx.TensorProto) -> Array:
    return np.asarray(numpy_helper.to_array(tensor))


def _parameter(value: Array) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(np.array(value)))
