"""What families of pictures share: training, prediction and export of a network (torch)."""

from abc import ABC, abstractmethod
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
from workers.training.augment import Augment
from workers.training.batches import Tensors
from workers.training.loop import train
from workers.training.losses import class_loss

_BATCH = 512


class Pictures(ABC):
    """A family that learns classes of pictures; a subclass makes the network."""

    devices = ("cpu", "cuda")

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = params

    @abstractmethod
    def network(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """An untrained network from uint8 or float32 0..255 [N, *shape] to logits [N, classes]; shape is [C, H, W]."""

    def fit(self, data: LearningData, job: JobContext) -> "FittedPictures":
        """Train with early stopping on the validation loss; resumes from the job's checkpoint."""
        shape = data.signature.inputs[0].shape[1:]
        change = None
        if data.training.augment is not None:
            change = Augment(data.training.augment, shape[0], data.n_classes)
        torch.manual_seed(data.training.seed)
        network = self.network(shape, data.n_classes)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stubs
        facts = train(
            network, class_loss(data), _tensors(data.train), _tensors(data.validation), data.training, job,
            data.threads, data.device, change,
        )  # fmt: skip
        return FittedPictures(data, network, {**facts, "weights": sum(p.numel() for p in network.parameters())})


def _tensors(part: Part) -> Tensors:
    return Tensors((torch.from_numpy(np.asarray(part.inputs["image"])),), torch.from_numpy(part.y))


class _Probabilities(nn.Module):
    """The network with a softmax, or of several labels the logistic function, as it is exported."""

    def __init__(self, network: nn.Module, *, several: bool) -> None:
        super().__init__()
        self.network, self.several = network, several

    def forward(self, image: Tensor) -> Tensor:
        """Probabilities."""
        logits: Tensor = self.network(image)
        return logits.sigmoid() if self.several else logits.softmax(dim=1)


@dataclass(frozen=True, slots=True)
class FittedPictures:
    """A trained network in evaluation mode."""

    data: LearningData
    network: nn.Module
    fit_facts: dict[str, Any]

    def predict(self, inputs: Inputs) -> Array:
        """Probabilities [N, K]."""
        pictures, answering = torch.from_numpy(np.asarray(inputs["image"])), self._answering()
        with torch.inference_mode():
            answers = [answering(pictures[i : i + _BATCH]) for i in range(0, rows_of(inputs), _BATCH)]
        return np.asarray(torch.cat(answers).numpy())

    def to_onnx(self) -> onnx.ModelProto:
        """By torch's exporter, in the default memory format, which is ONNX's."""
        self.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # as above
        example = torch.zeros((2, *self.data.signature.inputs[0].shape[1:]), dtype=torch.uint8)
        return export_module(self._answering(), example, self.data.signature)

    def _answering(self) -> nn.Module:
        return _Probabilities(self.network, several=self.data.task == "multilabel")

    def facts(self) -> dict[str, Any]:
        """Epochs, the best one, and number of weights."""
        return self.fit_facts
