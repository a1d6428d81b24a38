"""How a model is compressed, where that is given and not searched for: recipes of steps, as variants tell them."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from app.specs.base import Spec

_Share = Annotated[float, Field(gt=0, lt=1)]
_Operators = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=100)]],
    Field(min_length=1, max_length=50, description="types of ONNX nodes", examples=[["MatMul", "Gemm"]]),
]
_Nodes = Annotated[
    list[Annotated[str, Field(max_length=500)]],
    Field(max_length=10_000, description="names of nodes that are left as they are"),
]


class Student(Spec):
    """Distillation into a small model of another form."""

    step: Literal["student"]
    of: Annotated[
        Literal["trees", "networks", "pictures"],
        Field(description="trees: of a table; networks: of the version's own family; pictures: of an imported network"),
    ]
    size: Annotated[
        Literal["small", "medium", "large", "slim", "half", "quarter"],
        Field(description="small, medium or large of trees; slim, half or quarter of networks; small or medium"),
    ]

    @model_validator(mode="after")
    def _comes_so(self) -> "Student":
        sizes = {"trees": "small medium large", "networks": "slim half quarter", "pictures": "small medium"}[self.of]
        if self.size not in sizes.split():
            raise ValueError(f"students of {self.of} are {', '.join(sizes.split())}")
        return self


class Prune(Spec):
    """Channels leave every layer, and the network learns its answers again."""

    step: Literal["prune"]
    keep: Annotated[_Share, Field(description="of the channels")]
    importance: Annotated[Literal["taylor", "magnitude"], Field(description="what says which of them matter")] = (
        "taylor"
    )


class DropLayers(Spec):
    """Layers leave an encoder, and it learns its answers again."""

    step: Literal["drop_layers"]
    keep: Annotated[int, Field(ge=1, le=1000, description="layers")]
    table_rank: Annotated[
        int | None, Field(ge=1, le=100_000, description="of the table of words; null: it stays as it is")
    ] = None


class Cheapen(Spec):
    """ReLU in place of GELU, or linear layers of low rank, and the network learns its answers again."""

    step: Literal["cheapen"]
    relu: Annotated[bool, Field(description="in place of every GELU")] = False
    energy: Annotated[_Share | None, Field(description="of linear layers that is kept; null: they stay")] = None

    @model_validator(mode="after")
    def _something(self) -> "Cheapen":
        if not self.relu and self.energy is None:
            raise ValueError("give relu, energy or both")
        return self


class LearnRounding(Spec):
    """Quantization-aware fine-tuning; `quantize` follows."""

    step: Literal["learn_rounding"]
    operators: _Operators


class LowRank(Spec):
    """Large matrices become products of two small ones."""

    step: Literal["low_rank"]
    energy: Annotated[_Share, Field(description="of a matrix that is kept")]


class Simplify(Spec):
    """Constants are worked out, and nodes that do nothing leave."""

    step: Literal["simplify"]


class Fuse(Spec):
    """ONNX Runtime's fusions for encoders."""

    step: Literal["fuse"]
    fast_gelu: Annotated[bool, Field(description="GELU by its approximation")] = False


class QuantizeStatic(Spec):
    """Weights and activations in 8 bits, with ranges from training rows."""

    step: Literal["quantize"]
    method: Literal["static"]
    operators: _Operators
    activations: Literal["uint8", "int8"] = "uint8"
    calibration: Literal["min-max", "entropy", "percentile"] = "min-max"
    keep_float: _Nodes = []
    float_between: Annotated[bool, Field(description="only what goes into a product with weights is quantized")] = False


class QuantizeDynamic(Spec):
    """Weights in 8 bits, and activations by their range at run time."""

    step: Literal["quantize"]
    method: Literal["dynamic"]
    operators: _Operators
    keep_float: _Nodes = []


class QuantizeWeights(Spec):
    """Weights of large products in blocks of few bits."""

    step: Literal["quantize"]
    method: Literal["weights"]
    bits: Literal[4, 8]


class HalfWeights(Spec):
    """Weights that are stored in half precision."""

    step: Literal["half_weights"]


class ByteWeights(Spec):
    """Weights that are stored as bytes, each row with a scale."""

    step: Literal["byte_weights"]


class FirstTrees(Spec):
    """The last trees leave."""

    step: Literal["first_trees"]
    share: Annotated[_Share, Field(description="of the trees that is kept")]


class MergeLeaves(Spec):
    """Leaves of one parent that hardly differ become one."""

    step: Literal["merge_leaves"]
    tolerance: Annotated[_Share, Field(description="of the spread of all leaves")]


_Quantize = Annotated[QuantizeStatic | QuantizeDynamic | QuantizeWeights, Field(discriminator="method")]
_Step = Annotated[
    Student
    | Prune
    | DropLayers
    | Cheapen
    | LearnRounding
    | LowRank
    | Simplify
    | Fuse
    | _Quantize
    | HalfWeights
    | ByteWeights
    | FirstTrees
    | MergeLeaves,
    Field(discriminator="step"),
]
_FIRST = (Student, Prune, DropLayers)


def _in_order(steps: list[_Step]) -> list[_Step]:
    late = next((step.step for step in steps[1:] if isinstance(step, _FIRST)), None)
    if late is not None:
        raise ValueError(f"{late} begins with the full model; put it first, and no other such step beside it")
    return steps


CompressRecipe = Annotated[list[_Step], Field(min_length=1, max_length=10), AfterValidator(_in_order)]
