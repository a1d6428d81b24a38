"""What families of pictures share: training, prediction and export of a network (torch)."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from workers.context import JobContext
from workers.export.torch_graph import export_module
from workers.export.torch_weights import attention_layers, fold_norms, keep_layers, restore, settle_norms
from workers.families.weight_folders import find_picture_weights
from workers.learning import Array, Inputs, LearningData, Part, rows_of
from workers.training.augment import Augment
from workers.training.batches import Tensors
from workers.training.cheaper import cheapen_as
from workers.training.loop import train
from workers.training.losses import class_loss
from workers.training.rounding import begin_rounding, end_rounding

Importance = Literal["taylor", "magnitude"]

_BATCH = 512
_FEW = 32  # rows whose gradient says what matters
_ROOM = "network."  # of the weights of a network, within its graph
_SETTLING = 2048  # rows that tell restored batch norms what they see


class Pictures(ABC):
    """A family that learns classes of pictures; a subclass makes the network."""

    devices = ("cpu", "cuda")
    published: ClassVar[str] = ""  # the name of the family, if it takes published weights
    layers: ClassVar[str] = ""  # where a network has its list of layers, if they all have one shape

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = params
        self.about: dict[str, Any] = {}  # for the model card

    @abstractmethod
    def network(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """An untrained network from uint8 or float32 0..255 [N, *shape] to logits [N, classes]; shape is [C, H, W]."""

    def make(self, data: LearningData, job: JobContext) -> nn.Module:
        """A network with random weights, or on published ones."""
        shape, name = data.signature.inputs[0].shape[1:], self.params.get("weights")
        if name is None:
            return self.network(shape, data.n_classes)
        from workers.families import picture_weights, weights  # noqa: PLC0415 - they load transformers, most need not

        folder = find_picture_weights(job, self.published, name)
        network = picture_weights.published_network(self.published, folder, shape, data.signature.classes, self.params)
        self.about["fine_tuned"] = weights.told_of(folder, name)
        if self.params.get("lora") is not None:
            self.about["lora"] = network.adapt(self.params["lora"])
        return network

    def fit(self, data: LearningData, job: JobContext) -> "FittedPictures":
        """Train with early stopping on the validation loss; resumes from the job's checkpoint."""
        torch.manual_seed(data.training.seed)
        return self._train(self.make(data, job), data, job)

    def teach(self, fitted: "FittedPictures", data: LearningData, job: JobContext) -> "FittedPictures":
        """Train a network that is there, as `fit` does; it is changed."""
        torch.manual_seed(data.training.seed)
        return self._train(fitted.network, data, job)

    def teach_rounded(
        self, fitted: "FittedPictures", operators: Collection[str], data: LearningData, job: JobContext
    ) -> "FittedPictures":
        """`teach` while layers round as these ONNX operators do in int8; batch norms end in their convolutions."""
        fold_norms(fitted.network)
        begin_rounding(fitted.network, operators)
        taught = self.teach(fitted, data, job)
        end_rounding(fitted.network)
        return taught

    def _train(self, network: nn.Module, data: LearningData, job: JobContext) -> "FittedPictures":
        change = None
        if data.training.augment is not None:
            change = Augment(data.training.augment, data.signature.inputs[0].shape[1], data.n_classes)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stubs
        facts = train(
            network, class_loss(data), _tensors(data.train), _tensors(data.validation), data.training, job,
            data.threads, data.device, change,
        )  # fmt: skip
        if "lora" in self.about:
            network.settle()  # type: ignore[operator]  # it is a published one
        weights = sum(p.numel() for p in network.parameters())
        return FittedPictures(data, network, {**facts, **self.about, "weights": weights})

    def rebuild(self, model: onnx.ModelProto, data: LearningData, job: JobContext) -> "FittedPictures":
        """The network that `model` was exported from, or one that was pruned or shortened since.

        Raises:
            Unreadable: its weights are not in the graph.
            InvalidSpec: the published weights that it began with are no longer there.
        """
        network = self.make(data, job)
        if "lora" in self.about:
            network.settle()  # type: ignore[operator]  # it is a published one
        if depth := self.depth_of(model):
            keep_layers(network, self.layers, depth)
        cheapen_as(network, model, _ROOM)
        restore(network, model, _ROOM, frozen="lora" in self.about)
        rows = _tensors(data.train)
        settle_norms(network, [(rows.inputs[0][i : i + _BATCH],) for i in range(0, min(len(rows), _SETTLING), _BATCH)])
        return FittedPictures(data, network, {})

    def depth_of(self, model: onnx.ModelProto) -> int:
        """How many layers the network of this graph repeats; 0 if it is of no kind that can do with fewer."""
        return attention_layers(model) if self.layers else 0

    def shorten(self, network: nn.Module, keep: int, rank: int | None) -> None:  # noqa: ARG002 - pictures have no table
        """Keep so many of the layers, evenly spaced from the first."""
        keep_layers(network, self.layers, keep)

    @staticmethod
    def prune(network: nn.Module, keep: float, importance: Importance, data: LearningData) -> None:
        """Let a share of the network's channels go; the training rows of `data` say which."""
        from workers.training.pruning import prune  # noqa: PLC0415 - it takes a while to load, and few need it

        torch.set_num_threads(data.threads)
        rows = _tensors(data.train)
        prune(
            network,
            keep,
            importance,
            list(zip(torch.split(rows.inputs[0], _FEW), torch.split(rows.y, _FEW), strict=True)),
        )


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
