"""Convolutional network for pictures (torch)."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from workers.families.pictures import Pictures

_GRID = 4  # cells a side that the classifier sees
_STRIDED_SIDE = 16  # pixels; smaller pictures would lose too much in the first block


class Network(nn.Module):
    """Pictures uint8 [N, C, H, W] to logits [N, K].

    Each block is convolution, batch norm and ReLU, and halves the picture while it is larger than _GRID: the first
    block by its stride, which spares most of the work on full-size pictures, the others by their maximum. What is left
    is averaged to at most _GRID x _GRID cells, so that the classifier still knows where things are. Scaling to 0..1 is
    part of the network.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, params: Mapping[str, Any]) -> None:
        super().__init__()
        channels, height, width = shape
        self.blocks = nn.Sequential()
        for index, features in enumerate(params["channels"]):
            halve = min(height, width) > _GRID
            stride = 2 if halve and index == 0 and min(height, width) >= _STRIDED_SIDE else 1
            self.blocks.append(nn.Conv2d(channels, features, 3, stride=stride, padding=1, bias=False))
            self.blocks.extend([nn.BatchNorm2d(features), nn.ReLU()])
            if halve and stride == 1:
                self.blocks.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            elif halve:
                height, width = (height + 1) // 2, (width + 1) // 2
            channels = features
        cell = math.ceil(height / _GRID), math.ceil(width / _GRID)
        self.cells = nn.AvgPool2d(cell)
        self.dropout = nn.Dropout(params["dropout"])
        self.head = nn.Linear(channels * (height // cell[0]) * (width // cell[1]), classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits."""
        x = image.to(torch.float32) * (1 / 255)
        x = self.blocks(x.contiguous(memory_format=torch.channels_last))
        answer: Tensor = self.head(self.dropout(self.cells(x).flatten(1)))
        return answer


class Cnn(Pictures):
    """The family."""

    def network(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Blocks by `channels`."""
        return Network(shape, classes, self.params)
