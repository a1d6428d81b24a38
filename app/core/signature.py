"""What a model takes and gives: its tensors, and what they mean to a person.

This is `signature.json` of a model version. Serving builds its decoders from it and training writes it, so both sides
import these classes and no other description of a model's input exists.

Tabular models take at most two tensors, rows first, whatever the number of columns:

    numeric      FP32   [-1, n_numeric]       numbers, integers and booleans (0/1); NaN = missing
    categorical  BYTES  [-1, n_categorical]   UTF-8 text; the empty string = missing

Text models take `text` BYTES [-1, n_texts], UTF-8; the empty string = missing; tokens are made inside the graph.
Image models take `image` UINT8 [-1, channels, height, width], raw 0-255; scaling is inside the graph.
Classifiers give `probabilities` FP32 [-1, n_classes] in the order of `classes`, which add up to one unless the task is
`multilabel`, where each class is by itself; regressors give `value` FP32 [-1], and
with prediction intervals `lower` and `upper` FP32 [-1], between which a share `coverage` of the true values lies.

Imported models (task `inference`) have the tensors that they have, and no columns. Where `batched` is false the first
dimension is not the batch, and a request is run by itself.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Task = Literal["classification", "regression", "multilabel"]  # what can be trained
ModelTask = Literal["classification", "regression", "multilabel", "inference"]
Datatype = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "BF16",
    "FP32",
    "FP64",
    "BYTES",
]
ColumnType = Literal["number", "integer", "boolean", "category", "text", "image"]
SIGNATURE_VERSION = 1


@dataclass(frozen=True, slots=True)
class Tensor:
    """A graph input or output in Open Inference Protocol terms; -1 in `shape` is variable, the first is the batch."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """One named value of an instance and where it goes: column `index` of the tensor called `tensor`.

    `nullable` says whether null is accepted (the graph then imputes it). An `image` column fills a whole tensor.
    """

    name: str
    type: ColumnType
    tensor: str
    index: int = 0
    nullable: bool = False


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """How pictures become the `image` tensor: mode `L` (1 channel) or `RGB` (3), resized to height x width pixels."""

    mode: Literal["L", "RGB"]
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Threshold:
    """Of two classes, `label` is told from `probability` on, the other one below."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Signature:
    """A model's complete contract with its callers.

    Without `threshold` the likeliest class is the label. With `ordinal` the order of the classes means something.
    """

    task: ModelTask
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    columns: tuple[Column, ...]
    classes: tuple[str, ...] = ()
    target: str = ""
    image: ImageFormat | None = None
    batched: bool = True
    threshold: Threshold | None = None
    coverage: float | None = None
    ordinal: bool = False
    separator: str = ""  # of the labels of one cell of the target
    version: int = field(default=SIGNATURE_VERSION)

    @property
    def learned_task(self) -> Task:
        """The task of a version that was trained here. ValueError for an imported one, which has no labels."""
        if self.task == "inference":
            raise ValueError("an imported model has no task that labels could judge")
        return self.task

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `from_json` restores an equal object."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "Signature":
        """Read what `to_json` wrote. A newer `version` than this code knows is a ValueError."""
        if raw.get("version") != SIGNATURE_VERSION:
            raise ValueError(f"signature version {raw.get('version')!r} is not {SIGNATURE_VERSION}")
        tensors = {
            key: tuple(Tensor(t["name"], t["datatype"], tuple(t["shape"])) for t in raw[key])
            for key in ("inputs", "outputs")
        }
        return cls(
            task=raw["task"],
            inputs=tensors["inputs"],
            outputs=tensors["outputs"],
            columns=tuple(Column(**c) for c in raw["columns"]),
            classes=tuple(raw["classes"]),
            target=raw["target"],
            image=ImageFormat(**raw["image"]) if raw.get("image") else None,
            batched=raw.get("batched", True),
            threshold=Threshold(**raw["threshold"]) if raw.get("threshold") else None,
            coverage=raw.get("coverage"),
            ordinal=raw.get("ordinal", False),
            separator=raw.get("separator", ""),
        )
