"""The CNN that the serving benchmark uses, as a version folder of the product."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.core.signature import Column, ImageFormat, Signature, Tensor

IMAGE = ImageFormat("RGB", 64, 64)
CLASSES = tuple(f"class_{n}" for n in range(10))


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
        self.head = torch.nn.Linear(width, len(CLASSES))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Pictures uint8 [N, 3, 64, 64] to probabilities float32 [N, 10]."""
        return torch.softmax(self.head(self.body(image.float() / 255)), 1)


def export_cnn(folder: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A small CNN with random weights: speed does not depend on them. Returns pictures uint8 [64, 3, 64, 64]."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = _Cnn().eval()
    pictures = np.random.default_rng(0).integers(0, 256, (64, 3, 64, 64), dtype=np.uint8)
    folder.mkdir(parents=True)
    torch.onnx.export(
        network,
        (torch.from_numpy(pictures[:2]),),
        folder / "model.onnx",
        input_names=["image"],
        output_names=["probabilities"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1, max=4096)}},
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    with torch.inference_mode():
        expected = network(torch.from_numpy(pictures[:4])).numpy()
    signature = Signature(
        "classification",
        (Tensor("image", "UINT8", (-1, 3, 64, 64)),),
        (Tensor("probabilities", "FP32", (-1, len(CLASSES))),),
        (Column("image", "image", "image"),),
        CLASSES,
        "label",
        IMAGE,
    )
    _describe(folder, signature, {"image": pictures[:4]}, {"probabilities": expected})
    return pictures


def _describe(folder: Path, signature: Signature, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    kinds = {tensor.name: tensor.datatype for tensor in (*signature.inputs, *signature.outputs)}

    def tensors(arrays: dict[str, Any]) -> dict[str, Any]:
        return {
            name: {"datatype": kinds[name], "shape": list(array.shape), "data": array.ravel().tolist()}
            for name, array in arrays.items()
        }

    (folder / "signature.json").write_text(json.dumps(signature.to_json()))
    (folder / "golden.json").write_text(json.dumps({"inputs": tensors(inputs), "outputs": tensors(outputs)}))
