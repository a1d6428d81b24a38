"""Residual network for pictures (torch)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from workers.families.pictures import Pictures

_FIRST_SIDE = 16  # pixels a side, at most, that the first stage sees: blocks on larger ones take most of the time
_LAST_SIDE = 4  # pixels a side that a stage still halves


def _unit(channels: int, features: int, size: int, stride: int = 1) -> nn.Sequential:
    """Convolution and batch norm."""
    convolution = nn.Conv2d(channels, features, size, stride=stride, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(features))


class Block(nn.Module):
    """A basic block (He et al. 2016): two 3x3 convolutions beside a shortcut.

    Where the shape changes, the shortcut is a mean and a 1x1 convolution, which loses no pixel (He et al. 2019). The
    last batch norm begins at zero, so that an untrained block lets its input through (Goyal et al. 2017).
    """

    def __init__(self, channels: int, features: int, stride: int) -> None:
        super().__init__()
        last = nn.BatchNorm2d(features)
        nn.init.zeros_(last.weight)
        second = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.residual = nn.Sequential(_unit(channels, features, 3, stride), nn.ReLU(), second, last)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.append(nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False))
        if channels != features:
            self.shortcut.append(_unit(channels, features, 1))

    def forward(self, x: Tensor) -> Tensor:
        """From [N, channels, H, W] to [N, features, ceil(H / stride), ceil(W / stride)]."""
        return torch.relu(self.residual(x) + self.shortcut(x))


class Network(nn.Module):
    """Pictures uint8 [N, C, H, W] to logits [N, K].

    The stem is convolutions that halve the picture until no side of it is above _FIRST_SIDE. Stages follow, each but
    the first of half the picture while that is at least _LAST_SIDE, then the mean over all places and the classifier.
    Scaling to 0..1 is part of the network.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, params: Mapping[str, Any]) -> None:
        super().__init__()
        channels, height, width = shape
        widths = params["widths"]
        self.stem = nn.Sequential()
        halvings = max(0, (max(height, width) - 1).bit_length() - (_FIRST_SIDE - 1).bit_length())
        strides = [1] * (halvings <= 1) + [2] * halvings  # small pictures are first looked at as they are
        for index, stride in enumerate(strides):
            features = max(min(16, widths[0]), widths[0] >> (len(strides) - 1 - index))
            self.stem.extend([_unit(channels, features, 3, stride), nn.ReLU()])
            channels = features
        side = -(-min(height, width) >> halvings)
        self.stages = nn.Sequential()
        for stage, features in enumerate(widths):
            stride = 2 if stage and side >= _LAST_SIDE else 1
            side = -(-side // stride)
            for _ in range(params["depth"]):
                self.stages.append(Block(channels, features, stride))
                channels, stride = features, 1
        self.dropout = nn.Dropout(params["dropout"])
        self.head = nn.Linear(channels, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits."""
        x = image.to(torch.float32) * (1 / 255)
        x = self.stages(self.stem(x.contiguous(memory_format=torch.channels_last)))
        answer: Tensor = self.head(self.dropout(x.mean((2, 3))))
        return answer

    def recomputable(self) -> list[nn.Module]:
        """The stem, whose pictures are the largest, and each block."""
        return [self.stem, *self.stages]


class Resnet(Pictures):
    """The family."""

    published = "resnet"

    def network(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Stages by `widths` and `depth`."""
        return Network(shape, classes, self.params)
