"""Published picture networks, made from transformers' configurations with random weights."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from app.core.errors import InvalidSpec
from workers.families.pictures import Pictures

_FINE_SIDE = 64  # pixels; MobileNet leaves smaller pictures an eighth of their side, larger ones a thirty-second
_TOKENS = 8  # a side, of a vision transformer
_LAYER_SCALE = 0.1  # the published 1e-6 leaves blocks idle for more epochs than small networks are trained
_BLOCKS = {"ViTLayer", "ConvNextLayer", "MobileNetV2InvertedResidual", "ResNetBasicLayer", "ResNetBottleNeckLayer"}


def _spread(width: int) -> float:
    """Of initial weights; the published 0.02 is about this for the published width of 768."""
    return float(0.55 * width**-0.5)


def _common(shape: tuple[int, ...], classes: int) -> dict[str, Any]:
    """What every configuration takes. Fused attention would be exported with nodes for rows that are masked whole."""
    return {
        "num_channels": shape[0], "image_size": list(shape[1:]), "num_labels": classes, "attn_implementation": "eager",
    }  # fmt: skip


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The layers that a model of transformers repeats, in their order."""
    return [module for module in model.modules() if type(module).__name__ in _BLOCKS]


class Network(nn.Module):
    """Pictures uint8 [N, C, H, W] to logits [N, K] by a model of transformers; scaling to 0..1 is part of it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """Logits."""
        x = image.to(torch.float32) * (1 / 255)
        answer: Tensor = self.model(pixel_values=x.contiguous(memory_format=torch.channels_last)).logits
        return answer

    def recomputable(self) -> list[nn.Module]:
        """Its blocks."""
        return blocks_of(self.model)


class Mobilenet(Pictures):
    """MobileNet v2 (Sandler et al. 2018)."""

    published = "mobilenet"

    def network(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Channels by `width`."""
        config = MobileNetV2Config(
            **_common(shape, classes), depth_multiplier=self.params["width"], tf_padding=False,
            finegrained_output=False, output_stride=8 if min(shape[1:]) < _FINE_SIDE else 32,
            classifier_dropout_prob=self.params["dropout"],
        )  # fmt: skip
        model = MobileNetV2ForImageClassification(config)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1  # the configured 0.997 is the share that is kept, which torch takes as 1 - it
        return Network(model)


class Convnext(Pictures):
    """ConvNeXt (Liu et al. 2022)."""

    published = "convnext"

    def network(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Stages by `widths`, `depth` and `patch`. InvalidSpec: the picture is too small for them."""
        widths, side = self.params["widths"], min(shape[1:])
        patch = self.params["patch"] or max(1, min(4, side // 14))
        least = patch << (len(widths) - 1)
        if side < least:
            msg = f"{len(widths)} stages need pictures of {least} pixels a side, these have {side}; take fewer"
            raise InvalidSpec.at("params", "widths", msg=msg)
        config = ConvNextConfig(
            **_common(shape, classes), patch_size=patch, num_stages=len(widths),
            hidden_sizes=widths, depths=[self.params["depth"]] * len(widths),
            drop_path_rate=self.params["drop_path"], layer_scale_init_value=_LAYER_SCALE,
            initializer_range=_spread(widths[0]),
        )  # fmt: skip
        return Network(ConvNextForImageClassification(config))


class Vit(Pictures):
    """Vision transformer (Dosovitskiy et al. 2021)."""

    published = "vit"
    layers = "model.vit.layers"

    def network(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Layers by `width`, `depth`, `heads` and `patch`. InvalidSpec: the patch is larger than the picture."""
        params, side = self.params, min(shape[1:])
        patch = params["patch"] or max(1, side // _TOKENS)
        if patch > side:
            msg = f"these pictures have {side} pixels a side; take a smaller patch"
            raise InvalidSpec.at("params", "patch", msg=msg)
        config = ViTConfig(
            **_common(shape, classes), patch_size=patch, hidden_size=params["width"],
            num_hidden_layers=params["depth"], num_attention_heads=params["heads"],
            intermediate_size=4 * params["width"], hidden_dropout_prob=params["dropout"],
            initializer_range=_spread(params["width"]),
        )  # fmt: skip
        return Network(ViTForImageClassification(config))
