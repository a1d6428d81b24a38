"""Makes the three models with random weights, in fp32 and int8, and rows with the answers of ONNX Runtime.

    python -m bench.peers.models FOLDER

Speed does not depend on what weights a model has, and nothing is downloaded. A process of its own, because of torch.
"""

import math
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn

from bench.peers.servers.common import INPUTS
from workers.compression.fuse import fuse
from workers.compression.int8 import EVERYTHING, Static

ROWS = {"mlp": 64, "cnn": 16, "encoder": 64}  # different bodies of each model
_TOKENS = 30522
_OPSET = 18
_Rows = dict[str, np.ndarray[Any, np.dtype[Any]]]


class _Mlp(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width != out:
            self.shortcut = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.shortcut(x) + self.second(self.first(x)))


class _Resnet(nn.Module):
    """ResNet-18 with 200 classes; its batch norms have statistics, as a trained one's."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        layers.append(nn.MaxPool2d(3, 2, 1))
        width = 64
        for out, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            layers += [_Block(width, out, stride), _Block(out, out, 1)]
            width = out
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(width, 200)
        with torch.no_grad():
            for _ in range(3):
                self(torch.randn(32, 3, 64, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


class _Layer(nn.Module):
    """One encoder layer as BERT's: attention, then two dense layers, each with a residual and a norm behind it."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.dense = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-12) for _ in range(2))

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1]) + bias
        seen = (torch.softmax(scores, -1) @ value).transpose(1, 2).flatten(2)
        x = self.norms[0](x + self.out(seen))
        return self.norms[1](x + self.dense(x))


class _Encoder(nn.Module):
    """Six layers of 384 with 12 heads, mean over the real tokens."""

    def __init__(self, width: int = 384) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(_TOKENS, width), nn.Embedding(64, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(_Layer(width, 12, 1536) for _ in range(6))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        real = attention_mask.to(torch.float32)
        bias = (1.0 - real)[:, None, None, :] * -1e9
        x = self.norm(self.words(input_ids) + self.places.weight)
        for layer in self.layers:
            x = layer(x, bias)
        return (x * real[..., None]).sum(1) / real.sum(1, keepdim=True)


def rows(model: str, count: int, random: np.random.Generator) -> _Rows:
    """Random rows of a model's inputs; texts are 16 to 64 tokens long, padded to 64."""
    if model != "encoder":
        _, shape = INPUTS[model]["x"]
        return {"x": random.standard_normal((count, *shape), dtype=np.float32)}
    mask = (np.arange(64)[None] < random.integers(16, 65, count)[:, None]).astype(np.int64)
    return {"input_ids": random.integers(1000, 30000, (count, 64)) * mask, "attention_mask": mask}


def answers(onnx_file: Path, inputs: _Rows) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What ONNX Runtime answers to each row alone."""
    session = ort.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    count = len(next(iter(inputs.values())))
    one_by_one = [session.run(None, {name: a[at : at + 1] for name, a in inputs.items()})[0] for at in range(count)]
    return np.concatenate(one_by_one)


def _export(model: str, module: nn.Module, file: Path, random: np.random.Generator) -> None:
    inputs = rows(model, 2, random)
    batch = torch.export.Dim("batch", min=1, max=1024)
    torch.onnx.export(
        module.eval(),
        tuple(torch.from_numpy(array) for array in inputs.values()),
        file,
        input_names=list(inputs),
        output_names=["y"],
        dynamic_shapes=tuple({0: batch} for _ in inputs),
        opset_version=_OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _quantize(model: str, source: Path, target: Path, random: np.random.Generator) -> None:
    """As a `compress` job does it: static and per channel; its ranges are those of random rows."""
    graph = onnx.load(source)
    with TemporaryDirectory() as folder:
        encoder = model == "encoder"
        if encoder:
            graph = fuse(graph, fast_gelu=False)
        quantizer = Static(graph, rows(model, 64, random), 8, Path(folder))
        made = quantizer.quantize(["MatMul", "Gather"] if encoder else EVERYTHING, float_between=encoder)
    onnx.save(made, target)


def main(folder: Path) -> None:
    """Write {model}.onnx, {model}-int8.onnx and, as the last, {model}.npz with rows and the answers of both."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(7)
    random = np.random.default_rng(7)
    for model, make in (("mlp", _Mlp), ("cnn", _Resnet), ("encoder", _Encoder)):
        onnx_file, small = folder / f"{model}.onnx", folder / f"{model}-int8.onnx"
        _export(model, make(), onnx_file, random)
        inputs = rows(model, ROWS[model], random)
        expected = {"fp32": answers(onnx_file, inputs)}
        if model != "mlp":  # too small to gain
            _quantize(model, onnx_file, small, random)
            expected["int8"] = answers(small, inputs)
        np.savez(folder / f"{model}.npz", **inputs, **expected)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
