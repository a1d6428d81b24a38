"""Random changes to batches of training pictures, as tensor operations on whole batches.

Sources: cutout (DeVries & Taylor 2017), mixup (Zhang et al. 2018), cutmix (Yun et al. 2019).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from app.core.errors import InvalidSpec
from app.specs.augment import AugmentSpec
from workers.learning import Array
from workers.training.batches import Batch
from workers.training.rand_augment import GREY, rand_augment


class Augment:
    """Changes a batch of pictures as the spec says; every draw comes from the generator that it is given."""

    def __init__(self, spec: AugmentSpec, channels: int, classes: int) -> None:
        """InvalidSpec: saturation of pictures without colours."""
        if spec.saturation and channels == 1:
            raise InvalidSpec.at("training", "augment", "saturation", msg="these pictures are grey; leave it out")
        self.spec, self.classes = spec, classes
        self._mixes = [name for name in ("mixup", "cutmix") if getattr(spec, name)]

    def __call__(self, inputs: tuple[Tensor, ...], y: Tensor, rng: np.random.Generator) -> Batch:
        """Changed pictures and their labels.

        Args:
            inputs: one tensor, uint8 [N, C, H, W].
            y: int64 [N], class indices.
            rng: where every draw comes from.

        Returns:
            Pictures of the same shape: uint8, or float32 in 0..255 where values were blended. Labels as they were, or
            with mixup or cutmix float32 [N, K], whose rows sum to one.
        """
        spec, (images,) = self.spec, inputs
        if spec.flip or spec.flip_vertical or spec.crop:
            images = self._move(images, rng)
        if spec.rotate or spec.scale:
            images = self._turn(images, rng)
        if spec.brightness or spec.contrast or spec.saturation:
            images = self._colour(images, rng)
        if spec.rand_augment is not None:
            images = rand_augment(images, spec.rand_augment, rng)
        if spec.erase:
            inside = _boxes(images, np.full(len(images), spec.erase), rng)
            mean = images.to(torch.float32).mean((2, 3), keepdim=True)
            images = torch.where(inside, mean.to(images.dtype), images)
        if self._mixes:
            images, y = self._mix(images, y, rng)
        return (images,), y

    def _move(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """Flip and shift by picking pixels; the bytes stay bytes."""
        count, channels, height, width = images.shape
        rows = _places(count, height, self.spec.crop, rng, mirror=self.spec.flip_vertical)
        columns = _places(count, width, self.spec.crop, rng, mirror=self.spec.flip)
        picture = torch.arange(count)[:, None, None, None], torch.arange(channels)[None, :, None, None]
        return images[(*picture, rows[:, None, :, None], columns[:, None, None, :])]

    def _turn(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """Rotate and scale about the middle; edges are repeated."""
        count, _, height, width = images.shape
        angle = np.deg2rad(rng.uniform(-self.spec.rotate, self.spec.rotate, count))
        size = rng.uniform(1 - self.spec.scale, 1 + self.spec.scale, count)
        theta = np.zeros((count, 2, 3), np.float32)  # from the place in the new picture to that in the old one
        theta[:, 0, 0] = theta[:, 1, 1] = np.cos(angle) / size
        theta[:, 0, 1] = -np.sin(angle) / size * height / width
        theta[:, 1, 0] = np.sin(angle) / size * width / height
        grid = functional.affine_grid(torch.from_numpy(theta), list(images.shape), align_corners=False)
        return functional.grid_sample(images.to(torch.float32), grid, padding_mode="border", align_corners=False)

    def _colour(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        x = images.to(torch.float32)
        if self.spec.saturation:
            grey = (x * torch.tensor(GREY)[:, None, None]).sum(1, keepdim=True)
            x = grey + (x - grey) * _factors(len(x), self.spec.saturation, rng)
        if self.spec.contrast:
            mean = x.mean((1, 2, 3), keepdim=True)
            x = mean + (x - mean) * _factors(len(x), self.spec.contrast, rng)
        if self.spec.brightness:
            x = x * _factors(len(x), self.spec.brightness, rng)
        return x.clamp(0, 255)

    def _mix(self, images: Tensor, y: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Each picture with another of the batch, and their labels by the same shares."""
        count, name = len(images), self._mixes[int(rng.integers(len(self._mixes)))]
        alpha = getattr(self.spec, name)
        kept, other = rng.beta(alpha, alpha, count), torch.from_numpy(rng.permutation(count))
        if name == "cutmix":
            inside = _boxes(images, 1 - kept, rng)
            images = torch.where(inside, images[other], images)
            share = 1 - inside.to(torch.float32).mean((1, 2, 3))
        else:
            share = torch.from_numpy(kept.astype(np.float32))
            x = images.to(torch.float32)
            images = torch.lerp(x[other], x, share[:, None, None, None])
        labels = functional.one_hot(y, self.classes).to(torch.float32)
        return images, torch.lerp(labels[other], labels, share[:, None])


def _places(count: int, size: int, reach: int, rng: np.random.Generator, *, mirror: bool) -> Tensor:
    """For each picture, where the pixels of one axis come from: int64 [N, size]; shifted by at most half of it."""
    reach = min(reach, size // 2)
    places = np.clip(np.arange(size) + rng.integers(-reach, reach, (count, 1), endpoint=True), 0, size - 1)
    if mirror:
        places = np.where(rng.random((count, 1)) < 0.5, places[:, ::-1], places)  # noqa: PLR2004 - half of them
    return torch.from_numpy(places)


def _factors(count: int, reach: float, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.uniform(1 - reach, 1 + reach, (count, 1, 1, 1)).astype(np.float32))


def _boxes(images: Tensor, area: Array, rng: np.random.Generator) -> Tensor:
    """A rectangle of the picture's proportions and of about `area` [N] of it, anywhere inside: bool [N, 1, H, W]."""
    inside: Sequence[Tensor] = [
        torch.from_numpy((np.arange(size) >= first) & (np.arange(size) < first + length))
        for size in images.shape[2:]
        for length in [np.rint(np.sqrt(area) * size).astype(np.int64)[:, None]]
        for first in [rng.integers(0, size - length, endpoint=True)]
    ]
    return inside[0][:, None, :, None] & inside[1][:, None, None, :]
