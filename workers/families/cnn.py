"""Convolutional network for pictures (torch)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from workers.context import JobContext
from workers.export.runtime import Inputs, rows_of
from workers.export.torch_graph import export_module
from workers.families.base import Array, LearningData, Part
from workers.training.loop import Tensors, train

_BATCH = 512
_STRIDED_SIDE = 16  # pixels; smaller pictures would lose too much in the first block


class Network(nn.Module):
    """Pictures uint8 [N, C, H, W] to logits [N, K].

    Each block is convolution, batch norm and ReLU, and halves the picture: the first by its stride, which spares most
    of the work on full-size pictures, the last by averaging over what is left, the others by their maximum. Scaling to
    0..1 is part of the network.
    """

    def __init__(self, channels: int, classes: int, params: Mapping[str, Any], side: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential()
        for index, width in enumerate(params["channels"]):
            stride = 2 if index == 0 and side >= _STRIDED_SIDE else 1
            self.blocks.append(nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False))
            self.blocks.extend([nn.BatchNorm2d(width), nn.ReLU()])
            if stride == 1 and index < len(params["channels"]) - 1 and side > 1:
                self.blocks.append(nn.MaxPool2d(2))
            channels, side = width, side // 2
        self.dropout = nn.Dropout(params["dropout"])
        self.head = nn.Linear(channels, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits."""
        x = image.to(torch.float32) * (1 / 255)
        x = self.blocks(x.contiguous(memory_format=torch.channels_last))
        answer: Tensor = self.head(self.dropout(x.mean(dim=(2, 3))))
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

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = params

    def fit(self, data: LearningData, job: JobContext) -> "FittedCnn":
        """Train with early stopping on the validation loss; resumes from the job's checkpoint."""
        torch.manual_seed(data.training.seed)
        _, channels, height, width = data.signature.inputs[0].shape
        network = Network(channels, data.n_classes, self.params, min(height, width))
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
