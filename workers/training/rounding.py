"""Training under rounding: layers learn with weights and inputs as 8-bit integers would have them."""

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_KINDS = {"Conv": nn.Conv2d, "Gemm": nn.Linear, "MatMul": nn.Linear}
_LEVELS = 127  # of weights, to each side of zero
_STEPS = 255  # between the least and the largest input
_INERTIA = 0.9  # of ranges, from batch to batch
_ROOM = "input_rounding"


class _Weights(nn.Module):
    """Weights [out, …] rounded to int8, symmetric, by output channel; the gradient is that of the weights as given."""

    def forward(self, weight: Tensor) -> Tensor:
        """The rounded weights."""
        scale = weight.detach().abs().flatten(1).amax(dim=1).clamp(min=1e-8) / _LEVELS
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -_LEVELS, _LEVELS)


class _Inputs(nn.Module):
    """Inputs rounded to 256 values between the least and the largest of the batches of training."""

    low: Tensor
    high: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("low", "high", "seen"):
            self.register_buffer(name, torch.zeros(()))

    def forward(self, values: Tensor) -> Tensor:
        """The rounded inputs."""
        if self.training or not bool(self.seen):
            share = _INERTIA if bool(self.seen) else 0.0
            for side, now in zip((self.low, self.high), torch.aminmax(values.detach()), strict=True):
                side.mul_(share).add_(now * (1 - share))
            self.seen.fill_(1)
        low, high = self.low.clamp(max=0), self.high.clamp(min=0)  # zero is one of the values
        scale = ((high - low) / _STEPS).clamp(min=1e-8)
        return torch.fake_quantize_per_tensor_affine(values, scale, (-low / scale).round().int(), 0, _STEPS)


def begin_rounding(network: nn.Module, operators: Collection[str]) -> None:
    """Let the layers that become one of these ONNX operators round; it is changed."""
    kinds = tuple({_KINDS[name] for name in operators if name in _KINDS})
    for module in [module for module in network.modules() if isinstance(module, kinds)]:
        module.add_module(_ROOM, _Inputs())
        module.register_forward_pre_hook(_round)
        parametrize.register_parametrization(module, "weight", _Weights())


def end_rounding(network: nn.Module) -> None:
    """Plain layers again, with the weights that were learnt, not rounded."""
    for module in [module for module in network.modules() if parametrize.is_parametrized(module)]:
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
        delattr(module, _ROOM)
        module._forward_pre_hooks.clear()  # noqa: SLF001 - its handles would have to be kept otherwise


def _round(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    rounded = getattr(module, _ROOM)(given[0])
    return (rounded, *given[1:])
