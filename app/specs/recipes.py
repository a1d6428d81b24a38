"""How a model is compressed, where that is given and not searched for: recipes of steps, as variants tell them."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from app.specs.base import Spec

_OF_METHOD = {
    "static": {"step", "method", "operators", "keep_float", "activations", "calibration", "float_between"},
    "dynamic": {"step", "method", "operators", "keep_float"},
    "weights": {"step", "method", "bits"},
}
_Share = Annotated[float, Field(gt=0, lt=1)]
_Operators = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=100)]],
    Field(min_length=1, max_length=50, description="types of ONNX nodes", examples=[["MatMul", "Gemm"]]),
]
_Nodes = Annotated[
    list[Annotated[str, Field(max_length=500)]],
    Field(max_length=10_000),
]


class RecipeStep(Spec):
    """One step."""

    step: str

    def to_json(self) -> dict[str, Any]:
        """As it is carried out."""
        return self.model_dump(mode="json")


class Student(RecipeStep):
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
    def _comes_so(self) -> Self:
        sizes = {"trees": "small medium large", "networks": "slim half quarter", "pictures": "small medium"}[self.of]
        if self.size not in sizes.split():
            raise ValueError(f"students of {self.of} are {', '.join(sizes.split())}")
        return self


class Prune(RecipeStep):
    """Channels leave every layer, and the network learns its answers again."""

    step: Literal["prune"]
    keep: Annotated[_Share, Field(description="of the channels")]
    importance: Annotated[Literal["taylor", "magnitude"], Field(description="what says which of them matter")] = (
        "taylor"
    )


class DropLayers(RecipeStep):
    """Layers leave an encoder, and it learns its answers again."""

    step: Literal["drop_layers"]
    keep: Annotated[int, Field(ge=1, le=1000, description="layers")]
    table_rank: Annotated[
        int | None, Field(ge=1, le=100_000, description="of the table of words; null: it stays as it is")
    ] = None


class Cheapen(RecipeStep):
    """ReLU in place of GELU, or linear layers of low rank, and the network learns its answers again."""

    step: Literal["cheapen"]
    relu: Annotated[bool, Field(description="in place of every GELU")] = False
    energy: Annotated[_Share | None, Field(description="of linear layers that is kept; null: they stay")] = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.relu and self.energy is None:
            raise ValueError("give relu, energy or both")
        return self


class LearnRounding(RecipeStep):
    """Quantization-aware fine-tuning; `quantize` follows."""

    step: Literal["learn_rounding"]
    operators: _Operators


class LowRank(RecipeStep):
    """Large matrices become products of two small ones."""

    step: Literal["low_rank"]
    energy: Annotated[_Share, Field(description="of a matrix that is kept")]


class Simplify(RecipeStep):
    """Constants are worked out, and nodes that do nothing leave."""

    step: Literal["simplify"]


class Fuse(RecipeStep):
    """ONNX Runtime's fusions for encoders."""

    step: Literal["fuse"]
    fast_gelu: Annotated[bool, Field(description="GELU by its approximation")] = False


class Quantize(RecipeStep):
    """Integers in place of floats: of weights alone, or of activations too, whose ranges are known before or not."""

    step: Literal["quantize"]
    method: Annotated[
        Literal["static", "dynamic", "weights"],
        Field(
            description="static: ranges from training rows; dynamic: of each batch; weights: large products in blocks"
        ),
    ]
    operators: Annotated[_Operators | None, Field(description="of static and dynamic, which need it")] = None
    keep_float: Annotated[_Nodes, Field(description="of static and dynamic: nodes that are left as they are")] = []
    activations: Annotated[Literal["uint8", "int8"], Field(description="of static")] = "uint8"
    calibration: Annotated[Literal["min-max", "entropy", "percentile"], Field(description="of static")] = "min-max"
    float_between: Annotated[
        bool, Field(description="of static: only what goes into a product with weights is quantized")
    ] = False
    bits: Annotated[Literal[4, 8] | None, Field(description="of weights, which needs it")] = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        needed = "bits" if self.method == "weights" else "operators"
        if getattr(self, needed) is None:
            raise ValueError(f"method {self.method} needs {needed}")
        others = type(self).model_fields.keys() - _OF_METHOD[self.method]
        if wrong := sorted(name for name in others if getattr(self, name) != type(self).model_fields[name].default):
            raise ValueError(f"{', '.join(wrong)}: not of method {self.method}; leave it out")
        return self

    def to_json(self) -> dict[str, Any]:
        """Without what is of other methods."""
        return {name: value for name, value in super().to_json().items() if name in _OF_METHOD[self.method]}


class Half(RecipeStep):
    """Products, and what lies between them, in half precision, which GPUs have kernels for."""

    step: Literal["half"]


class HalfWeights(RecipeStep):
    """Weights that are stored in half precision."""

    step: Literal["half_weights"]


class ByteWeights(RecipeStep):
    """Weights that are stored as bytes, each row with a scale."""

    step: Literal["byte_weights"]


class FirstTrees(RecipeStep):
    """The last trees leave."""

    step: Literal["first_trees"]
    share: Annotated[_Share, Field(description="of the trees that is kept")]


class MergeLeaves(RecipeStep):
    """Leaves of one parent that hardly differ become one."""

    step: Literal["merge_leaves"]
    tolerance: Annotated[_Share, Field(description="of the spread of all leaves")]


_Step = Annotated[
    Student
    | Prune
    | DropLayers
    | Cheapen
    | LearnRounding
    | LowRank
    | Simplify
    | Fuse
    | Quantize
    | Half
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
