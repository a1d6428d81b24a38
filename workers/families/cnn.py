"""Convolutional network for pictures (torch)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from workers.context import JobContext
from workers.export.torch_graph import export_module
from workers.learning import Array, Inputs, LearningData, Part, rows_of
from workers.training.loop import Tensors, train

_BATCH = 512
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


class _Probabilities(nn.Module):
    """The network with a softmax, as it is exported."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Probabilities."""
        logits: Tensor = self.network(image)
        return logits.softmax(dim=1)


class Cnn:
    """The family."""

    devices = ("cpu", "cuda")

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = params

    def fit(self, data: LearningData, job: JobContext) -> "FittedCnn":
        """Train with early stopping on the validation loss; resumes from the job's checkpoint."""
        torch.manual_seed(data.training.seed)
        network = Network(data.signature.inputs[0].shape[1:], data.n_classes, self.params)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stubs
        facts = train(
            network, nn.CrossEntropyLoss(), _tensors(data.train), _tensors(data.validation), data.training, job,
            data.threads, data.device,
        )  # fmt: skip
        return FittedCnn(data, network, {**facts, "weights": sum(p.numel() for p in network.parameters())})


def _tensors(part: Part) -> Tensors:
    return Tensors((torch.from_numpy(np.asarray(part.inputs["image"])),), torch.from_numpy(part.y))


@dataclass(frozen=True, slots=True)
class FittedCnn:
    """A trained network in evaluation mode."""

    data: LearningData
    network: Network
    fit_facts: dict[str, Any]

    def predict(self, inputs: Inputs) -> Array:
        """Probabilities [N, K]."""
        pictures, answers = torch.from_numpy(np.asarray(inputs["image"])), []
        with torch.inference_mode():
            answers = [self.network(pictures[i : i + _BATCH]).softmax(dim=1) for i in range(0, rows_of(inputs), _BATCH)]
        return np.asarray(torch.cat(answers).numpy())

    def to_onnx(self) -> onnx.ModelProto:
        """By torch's exporter, in the default memory format, which is ONNX's."""
        network = self.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # as above
        example = torch.zeros((2, *self.data.signature.inputs[0].shape[1:]), dtype=torch.uint8)
        return export_module(_Probabilities(network), example, self.data.signature)

    def facts(self) -> dict[str, Any]:
        """Epochs, the best one, and number of weights."""
        return self.fit_facts
