"""The CNN that the serving benchmark imports."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

CLASSES = 10


class _Cnn(torch.nn.Module):
    """Three stride-two convolutions with two more each: about 5 ms a picture on one core."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[torch.nn.Module] = []
        width = 3
        for out in (48, 96, 192):
            layers += [torch.nn.Conv2d(width, out, 3, stride=2, padding=1), torch.nn.ReLU()]
            layers += [torch.nn.Conv2d(out, out, 3, padding=1), torch.nn.ReLU()] * 2
            width = out
        self.body = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        self.head = torch.nn.Linear(width, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Pictures uint8 [N, 3, 64, 64] to probabilities float32 [N, 10]."""
        return torch.softmax(self.head(self.body(image.float() / 255)), 1)


def export_cnn(onnx: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A small CNN with random weights: speed does not depend on them. Returns pictures uint8 [64, 3, 64, 64]."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    pictures = np.random.default_rng(0).integers(0, 256, (64, 3, 64, 64), dtype=np.uint8)
    torch.onnx.export(
        _Cnn().eval(),
        (torch.from_numpy(pictures[:2]),),
        onnx,
        input_names=["image"],
        output_names=["probabilities"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1, max=4096)}},
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    return pictures
