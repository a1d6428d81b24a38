"""The two models that the serving benchmark uses, trained and exported as version folders of the product."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_breast_cancer
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from app.core.signature import Column, ImageFormat, Signature, Tensor

IMAGE = ImageFormat("RGB", 64, 64)
CLASSES = tuple(f"class_{n}" for n in range(10))


def export_table(folder: Path) -> list[dict[str, float]]:
    """Breast cancer, 30 numbers, an MLP of two layers. Returns rows as a client would send them."""
    data = load_breast_cancer()
    pipeline = make_pipeline(StandardScaler(), MLPClassifier((64, 64), max_iter=60, random_state=0, tol=1e-2))
    pipeline.fit(data.data.astype(np.float32), data.target)
    graph = to_onnx(
        pipeline,
        initial_types=[("numeric", FloatTensorType([None, 30]))],
        options={"zipmap": False},
        target_opset=18,
    )
    names = {"probabilities": "probabilities"}
    assert [o.name for o in graph.graph.output][1] in names, "skl2onnx names the second output so"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    signature = Signature(
        "classification",
        (Tensor("numeric", "FP32", (-1, 30)),),
        (Tensor("probabilities", "FP32", (-1, 2)),),
        tuple(Column(str(name), "number", "numeric", at) for at, name in enumerate(data.feature_names)),
        tuple(str(name) for name in data.target_names),
        "diagnosis",
    )
    rows = data.data[:64].astype(np.float32)
    expected = pipeline.predict_proba(rows[:8]).astype(np.float32)
    _describe(folder, signature, {"numeric": rows[:8]}, {"probabilities": expected})
    return [dict(zip(map(str, data.feature_names), map(float, row), strict=True)) for row in rows]


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
