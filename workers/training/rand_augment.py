"""RandAugment (Cubuk and others 2020): each picture goes through some changes out of fourteen, all equally strong.

Operations and their ranges are those of torchvision, on whole batches; every draw is numpy's.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from app.specs.augment import RandAugmentSpec
from workers.learning import Array

GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow turns colours to grey
_STRONGEST = 30  # the magnitude at which ranges end
_SHEAR, _SHIFT, _DEGREES, _BLEND = 0.3, 150 / 331, 30.0, 0.9  # the ends; of a shift: share of the side
_BITS = 4  # that the strongest posterize takes
_EPS = 1e-6
_Operation = Callable[[Tensor, Tensor], Tensor]  # float32 [N, C, H, W] in 0..255, strength with its sign [N]


def rand_augment(images: Tensor, spec: RandAugmentSpec, rng: np.random.Generator) -> Tensor:
    """Changed pictures.

    Args:
        images: uint8 or float32 in 0..255, [N, C, H, W].
        spec: how many changes, and how strong.
        rng: where every draw comes from.

    Returns:
        Pictures float32 in 0..255 of the same shape.
    """
    x = images.to(torch.float32)
    names = [name for name in OPERATIONS if name != "saturation" or x.shape[1] == len(GREY)]
    for _ in range(spec.operations):
        chosen, signs = rng.integers(len(names), size=len(x)), rng.choice([-1.0, 1.0], len(x))
        strength = torch.from_numpy((signs * spec.magnitude / _STRONGEST).astype(np.float32))
        x = _each(x, [names[i] for i in chosen], strength)
    return x


def _each(x: Tensor, chosen: list[str], strength: Tensor) -> Tensor:
    """Each picture changed by its operation."""
    done, names = x.clone(), np.array(chosen)
    for name in sorted(set(chosen)):
        rows = torch.from_numpy(np.flatnonzero(names == name))
        done[rows] = OPERATIONS[name](x[rows], strength[rows]).clamp(0, 255)
    return done


def _placed(matrix: Callable[[Array, Array], list[list[Array]]]) -> _Operation:
    """Pixels from elsewhere: `matrix` gives, of strengths, zeros and the sides' ratio, the rows of an affine map."""

    def place(x: Tensor, strength: Tensor) -> Tensor:
        s = strength.numpy()
        theta = torch.from_numpy(np.stack([np.stack(row, 1) for row in matrix(s, np.zeros_like(s))], 1))
        height, width = x.shape[2:]
        theta[:, 0, 1] *= height / width  # the map is of pixels, and the grid of halves of the sides
        theta[:, 1, 0] *= width / height
        grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
        return functional.grid_sample(x, grid, padding_mode="border", align_corners=False)

    return place


def _turned(s: Array, zero: Array) -> list[list[Array]]:
    angle = np.deg2rad(_DEGREES * s)
    return [[np.cos(angle), -np.sin(angle), zero], [np.sin(angle), np.cos(angle), zero]]


def _blended(other: Callable[[Tensor], Tensor]) -> _Operation:
    """Away from another picture, or towards it."""

    def blend(x: Tensor, strength: Tensor) -> Tensor:
        base = other(x)
        return base + (x - base) * (1 + _BLEND * strength)[:, None, None, None]

    return blend


def _grey(x: Tensor) -> Tensor:
    """The brightness of each pixel: [N, 1, H, W]."""
    return (x * torch.tensor(GREY)[:, None, None]).sum(1, keepdim=True) if x.shape[1] == len(GREY) else x[:, :1]


def _blurred(x: Tensor) -> Tensor:
    """Smooth inside, as it is at the edges."""
    if min(x.shape[2:]) < 3:  # noqa: PLR2004 - the kernel's side
        return x
    kernel = torch.ones(3, 3)
    kernel[1, 1] = 5.0
    smooth = x.clone()
    weights = (kernel / kernel.sum()).expand(x.shape[1], 1, 3, 3)
    smooth[:, :, 1:-1, 1:-1] = functional.conv2d(x, weights, groups=x.shape[1])
    return smooth


def _posterized(x: Tensor, strength: Tensor) -> Tensor:
    """Fewer bits a byte."""
    unit = 2.0 ** torch.round(_BITS * strength.abs())[:, None, None, None]
    return torch.floor(x / unit) * unit


def _solarized(x: Tensor, strength: Tensor) -> Tensor:
    """What is brighter than a bound is turned to its negative."""
    bound = 255 * (1 - strength.abs())[:, None, None, None]
    return torch.where(x >= bound, 255 - x, x)


def _stretched(x: Tensor, _strength: Tensor) -> Tensor:
    """Each channel to the whole range."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high - low > _EPS, (x - low) * 255 / (high - low).clamp(min=_EPS), x)


def _equalized(x: Tensor, _strength: Tensor) -> Tensor:
    """Each channel's values as evenly spread as Pillow's equalize spreads them."""
    count, channels, height, width = x.shape
    values = x.round().to(torch.int64).flatten(2).flatten(0, 1)  # [N * C, H * W]
    histogram = torch.zeros(len(values), 256).scatter_add_(1, values, torch.ones_like(values, dtype=torch.float32))
    last = histogram.gather(1, values.amax(1, keepdim=True))
    step = torch.floor((height * width - last) / 255)  # [N * C, 1]
    before = histogram.cumsum(1) - histogram
    table = torch.floor((before + torch.floor(step / 2)) / step.clamp(min=1)).clamp(0, 255)
    spread = table.gather(1, values).view(count, channels, height, width)
    return torch.where(step.view(count, channels, 1, 1) > 0, spread, x)


OPERATIONS: Mapping[str, _Operation] = {
    "identity": lambda x, _: x,
    "shear_x": _placed(lambda s, zero: [[zero + 1, _SHEAR * s, zero], [zero, zero + 1, zero]]),
    "shear_y": _placed(lambda s, zero: [[zero + 1, zero, zero], [_SHEAR * s, zero + 1, zero]]),
    "shift_x": _placed(lambda s, zero: [[zero + 1, zero, 2 * _SHIFT * s], [zero, zero + 1, zero]]),
    "shift_y": _placed(lambda s, zero: [[zero + 1, zero, zero], [zero, zero + 1, 2 * _SHIFT * s]]),
    "rotate": _placed(_turned),
    "brightness": _blended(torch.zeros_like),
    "saturation": _blended(_grey),
    "contrast": _blended(lambda x: _grey(x).mean((1, 2, 3), keepdim=True)),
    "sharpness": _blended(_blurred),
    "posterize": _posterized,
    "solarize": _solarized,
    "auto_contrast": _stretched,
    "equalize": _equalized,
}
