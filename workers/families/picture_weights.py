"""Published picture networks, read from a folder of safetensors, to be fine-tuned."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    ConvNextForImageClassification,
    MobileNetV2ForImageClassification,
    PreTrainedModel,
    ResNetForImageClassification,
    ViTForImageClassification,
)

from workers.families.backbones import blocks_of
from workers.families.lora import adapted, merged
from workers.families.weight_folders import Pixels, labels_of, pixels_of, refused
from workers.families.weights import load_pretrained

_HEAD = "classifier"
_CLASSES: dict[str, type[PreTrainedModel]] = {
    "resnet": ResNetForImageClassification, "mobilenet": MobileNetV2ForImageClassification,
    "convnext": ConvNextForImageClassification, "vit": ViTForImageClassification,
}  # fmt: skip
_DROPOUT = {
    "vit": ("dropout", "hidden_dropout_prob"), "mobilenet": ("dropout", "classifier_dropout_prob"),
    "convnext": ("drop_path", "drop_path_rate"),
}  # fmt: skip  # a parameter of the family, and what transformers calls it


class Published(nn.Module):
    """Pictures uint8 [N, C, H, W] to logits [N, K]; bytes are scaled as the published network's were.

    Grey pictures are shown to a network of three colours three times.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: PreTrainedModel, pixels: Pixels) -> None:
        super().__init__()
        self.model = model
        for name in ("scale", "shift"):
            self.register_buffer(name, torch.tensor(getattr(pixels, name))[:, None, None])
        self.channels: int = model.config.num_channels

    def forward(self, image: Tensor) -> Tensor:
        """Logits."""
        x = image.to(torch.float32) * self.scale + self.shift  # [N, channels, H, W], of grey ones too
        if x.shape[1] < self.channels:
            x = x.expand(-1, self.channels, -1, -1)
        answer: Tensor = self.model(pixel_values=x.contiguous(memory_format=torch.channels_last)).logits
        return answer

    def recomputable(self) -> list[nn.Module]:
        """Its blocks."""
        return blocks_of(self.model)

    def adapt(self, lora: Mapping[str, Any]) -> dict[str, Any]:
        """Let low-rank matrices learn, and the classifier; what the model card says of it."""
        inside, facts = adapted(self.model.base_model, lora)
        setattr(self.model, self.model.base_model_prefix, inside)
        return facts

    def settle(self) -> None:
        """Add what `adapt` let learn to the network's own weights."""
        name = self.model.base_model_prefix
        setattr(self.model, name, merged(getattr(self.model, name)))


def published_network(
    family: str, folder: Path, shape: tuple[int, ...], classes: Sequence[str], params: Mapping[str, Any]
) -> Published:
    """The network of a folder, with a new classifier unless it tells these very classes apart.

    Args:
        family: the name of the family.
        folder: that `picture_weights` gave.
        shape: of the pictures, [C, H, W].
        classes: labels in their order.
        params: of the family.

    Raises:
        InvalidSpec: the folder's files are damaged, lack weights, or are of pictures of other colours.
    """
    param, name = _DROPOUT.get(family, ("", ""))
    how: dict[str, Any] = {name: params[param]} if param else {}
    model = load_pretrained(
        _CLASSES[family], folder, (f"{_HEAD}.",), num_labels=len(classes), attn_implementation="eager", **how
    )
    head = model.get_submodule(_HEAD)
    if isinstance(head, nn.Sequential):  # of resnet, which has no dropout
        head.insert(1, nn.Dropout(params["dropout"]))
    if labels_of(folder) != list(classes):
        for layer in head.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
    for module in model.modules():
        if family == "mobilenet" and isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # the configured one is the share that is kept, which torch takes as 1 - it
    pixels = pixels_of(folder)
    if len(pixels.scale) not in {1, model.config.num_channels} or shape[0] not in {1, model.config.num_channels}:
        raise refused(f"these weights are of pictures of {model.config.num_channels} channels, these have {shape[0]}")
    return Published(model, pixels)
