"""Model families: what each can learn and which parameters it takes.

The gateway reads descriptors to validate and to document; the job child imports `implementation`. A third party adds a
family by registering a `Family` under the entry point group `aimass.families`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, model_validator

from app.core.errors import InvalidSpec, Misconfigured
from app.core.signature import Task
from app.specs.base import Spec, field_error

ENTRY_POINT_GROUP = "aimass.families"
DataKind = Literal["tabular", "text", "image"]  # text: columns of text in a table


Weights = Annotated[
    str | None,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$",
        max_length=200,
        description="fine-tune these: a folder of safetensors in the worker's AIMASS_WORKER_WEIGHTS; null: random ones",
    ),
]


class FamilyParams(Spec):
    """Base of every family's `params`."""


def divided_by_heads(width: int, info: ValidationInfo) -> int:
    """The width, which `heads`, an earlier field, share. ValueError if they cannot."""
    if width % info.data.get("heads", 1):
        raise ValueError(f"must be a multiple of heads = {info.data['heads']}")
    return width


class LinearParams(FamilyParams):
    """Logistic regression or ridge on scaled numbers and one-hot categories; with `l1_ratio` the elastic net."""

    regularization: Annotated[float, Field(gt=0, le=1e6, description="penalty's strength; larger is simpler")] = 1.0
    l1_ratio: Annotated[float, Field(ge=0, le=1, description="0: L2 alone; 1: L1 alone, which drops columns")] = 0.0
    max_iter: Annotated[int, Field(ge=10, le=100_000, description="solver iterations")] = 1000


class GbdtParams(FamilyParams):
    """Gradient-boosted trees (LightGBM)."""

    n_estimators: Annotated[int, Field(ge=1, le=10_000, description="most trees; early stopping keeps fewer")] = 1000
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.05
    num_leaves: Annotated[int, Field(ge=2, le=4096, description="leaves a tree")] = 31
    max_depth: Annotated[int, Field(ge=-1, le=64, description="-1: no limit")] = -1
    min_child_samples: Annotated[int, Field(ge=1, le=100_000, description="rows a leaf needs")] = 20
    subsample: Annotated[float, Field(gt=0, le=1, description="rows sampled for a tree")] = 0.9
    colsample: Annotated[float, Field(gt=0, le=1, description="columns sampled for a tree")] = 0.8
    reg_lambda: Annotated[float, Field(ge=0, le=1e6, description="L2 on leaf values")] = 1.0
    one_hot: Annotated[
        int,
        Field(
            ge=0, le=1000, description="columns of at most so many categories also have a feature of 0 and 1 for each"
        ),
    ] = 0
    values: Annotated[
        int,
        Field(
            ge=0,
            le=10_000,
            description="columns of at most so many different numbers, in 20 rows each on average or more, also have a "
            "feature for how the target goes with each of them",
        ),
    ] = 0
    pairs: Annotated[
        int,
        Field(
            ge=0,
            le=16,
            description="so many pairs of numbers, those that trees split one after the other, also have features for "
            "their sum and their difference, of standardised values: slanted borders, as on a map",
        ),
    ] = 0


class XgboostParams(FamilyParams):
    """Gradient-boosted trees (XGBoost)."""

    n_estimators: Annotated[int, Field(ge=1, le=10_000, description="most trees; early stopping keeps fewer")] = 1000
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.05
    max_depth: Annotated[int, Field(ge=1, le=32)] = 6
    min_child_weight: Annotated[float, Field(ge=0, le=1e6, description="curvature of the loss a leaf needs")] = 1.0
    subsample: Annotated[float, Field(gt=0, le=1, description="rows sampled for a tree")] = 0.9
    colsample: Annotated[float, Field(gt=0, le=1, description="columns sampled for a tree")] = 0.8
    reg_lambda: Annotated[float, Field(ge=0, le=1e6, description="L2 on leaf values")] = 1.0


class RandomForestParams(FamilyParams):
    """Random forest (scikit-learn)."""

    n_estimators: Annotated[int, Field(ge=1, le=2000, description="trees")] = 200
    max_depth: Annotated[int | None, Field(ge=1, le=64, description="null: no limit")] = 16
    min_samples_leaf: Annotated[int, Field(ge=1, le=100_000, description="rows a leaf needs")] = 2
    max_features: Annotated[float, Field(gt=0, le=1, description="share of columns tried at a split")] = 0.5


class ExtraTreesParams(FamilyParams):
    """Extremely randomised trees (scikit-learn): a forest whose thresholds are drawn at random, on all rows."""

    n_estimators: Annotated[int, Field(ge=1, le=2000, description="trees")] = 200
    max_depth: Annotated[int | None, Field(ge=1, le=64, description="null: no limit")] = 16
    min_samples_leaf: Annotated[int, Field(ge=1, le=100_000, description="rows a leaf needs")] = 2
    max_features: Annotated[float, Field(gt=0, le=1, description="share of columns tried at a split")] = 0.7


class NaiveBayesParams(FamilyParams):
    """Naive Bayes: a normal distribution of each number and a table of each category, by class."""

    var_smoothing: Annotated[float, Field(gt=0, le=1, description="share of the largest variance added to all")] = 1e-3
    alpha: Annotated[float, Field(gt=0, le=1e3, description="rows' worth added to each category")] = 1.0


class MlpParams(FamilyParams):
    """Multi-layer perceptron with embeddings for categories (torch)."""

    hidden: Annotated[
        list[Annotated[int, Field(ge=1, le=8192)]], Field(min_length=1, max_length=16, description="units per layer")
    ] = [128, 64]
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    activation: Literal["relu", "gelu", "silu"] = "relu"
    bins: Annotated[
        int,
        Field(ge=0, le=128, description="quantile bins in which a number is also told, piecewise linearly; 0: none"),
    ] = 0
    residual: Annotated[
        bool, Field(description="each hidden layer is a block of norm, layer, activation that adds to what it reads")
    ] = False


class FtTransformerParams(FamilyParams):
    """Feature-tokenizer transformer (torch): every column is a token."""

    width: Annotated[int, Field(ge=8, le=1024, multiple_of=8, description="numbers that stand for a column")] = 64
    blocks: Annotated[int, Field(ge=1, le=12)] = 2
    heads: Annotated[Literal[1, 2, 4, 8], Field(description="of attention; width is divided among them")] = 4
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


class CnnParams(FamilyParams):
    """Convolutional network for images (torch): blocks of convolution, batch norm and ReLU that halve the picture."""

    channels: Annotated[
        list[Annotated[int, Field(ge=4, le=1024)]], Field(min_length=1, max_length=6, description="channels per block")
    ] = [32, 64, 128]
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    image_size: Annotated[
        int | None, Field(ge=8, le=512, description="pixels a side; null: from the data, at most 96")
    ] = None


class TextLinearParams(FamilyParams):
    """Support vector machine and naive Bayes, or ridge, on TF-IDF of words and of characters, in any language."""

    words: Annotated[int, Field(ge=0, le=4, description="longest n-gram of words; 0: none")] = 2
    characters: Annotated[int, Field(ge=0, le=8, description="longest n-gram of characters, from 2; 0: none")] = 5
    min_rows: Annotated[int, Field(ge=1, le=100_000, description="training rows that an n-gram occurs in")] = 2
    max_features: Annotated[
        int, Field(ge=100, le=2_000_000, description="most n-grams of words, and as many of characters")
    ] = 200_000
    max_characters: Annotated[int, Field(ge=16, le=1000, description="read of a text; the rest is not")] = 1000
    regularization: Annotated[
        float | None, Field(gt=0, le=1e6, description="L2 strength; null: chosen by cross-validation")
    ] = None

    @model_validator(mode="after")
    def _reads_something(self) -> Self:
        if not self.words and self.characters < 2:  # noqa: PLR2004 - the shortest n-gram of characters
            raise ValueError("without words, characters must be at least 2")
        return self


@dataclass(frozen=True, slots=True)
class Family:
    """A family's descriptor.

    `implementation` is `module:attribute`, imported by the job child alone; it satisfies
    `workers.families.base.Family`. With `loop` it learns by `workers.training.loop`, and so takes `label_smoothing` and
    `ema`; those of pictures and of texts take `augment`. With `weighs_classes` it heeds `LearningData.class_weights`.
    With `holds_out` its models are `workers.families.base.HoldsOut`. With `tries` it trains other families, and hands
    `augment` and `precision` on to those that have a loop. With `recomputes` its networks are
    `workers.training.recompute.Recomputable`, and it takes `gradient_checkpointing`.
    """

    name: str
    tasks: tuple[Task, ...]
    data: DataKind
    params: type[FamilyParams]
    implementation: str
    summary: str
    loop: bool = False
    weighs_classes: bool = False
    holds_out: bool = False
    tries: bool = False
    recomputes: bool = False

    @property
    def dataset(self) -> Literal["tabular", "image"]:
        """The kind of data set that it learns from."""
        return "image" if self.data == "image" else "tabular"

    def check_features(self, types: Mapping[str, str], *, steps: int) -> None:
        """InvalidSpec for column types, and steps, that the family has no use for."""
        for name, kind in types.items():
            if self.data == "text" and kind != "text":
                msg = f"'{self.name}' reads text alone; make it text, or name it in features.drop"
                raise InvalidSpec.at("features", "types", name, msg=msg)
            if self.data == "tabular" and kind == "text":
                msg = f"'{self.name}' reads no text; use the family text_linear, or make it a category"
                raise InvalidSpec.at("features", "types", name, msg=msg)
        if self.data != "tabular" and steps:
            msg = f"'{self.name}' learns from {self.data} data; steps are for families of tables; leave them out"
            raise InvalidSpec.at("features", "steps", 0, msg=msg)

    def schema(self) -> dict[str, Any]:
        """JSON schema of `params`."""
        return self.params.model_json_schema()

    def validate(self, params: dict[str, Any]) -> FamilyParams:
        """Check raw `params`. InvalidSpec names each bad field under `params`."""
        try:
            return self.params.model_validate(params)
        except ValidationError as error:
            errors = [field_error({**e, "loc": ("params", *e["loc"])}) for e in error.errors(include_url=False)]
            known = ", ".join(self.params.model_fields)
            raise InvalidSpec(f"params do not fit family '{self.name}'; it takes: {known}", errors=errors) from None


EVERY_TASK: tuple[Task, ...] = ("classification", "regression", "multilabel")
LINEAR = Family(
    "linear",
    EVERY_TASK,
    "tabular",
    LinearParams,
    "workers.families.linear:Linear",
    "logistic regression, ridge",
    weighs_classes=True,
)
GBDT = Family(
    "gbdt",
    EVERY_TASK,
    "tabular",
    GbdtParams,
    "workers.families.gbdt:Gbdt",
    "gradient-boosted trees (LightGBM)",
    weighs_classes=True,
)
RANDOM_FOREST = Family(
    "random_forest",
    EVERY_TASK,
    "tabular",
    RandomForestParams,
    "workers.families.random_forest:RandomForest",
    "random forest (scikit-learn)",
    weighs_classes=True,
)
XGBOOST = Family(
    "xgboost",
    EVERY_TASK,
    "tabular",
    XgboostParams,
    "workers.families.xgboost:Xgboost",
    "gradient-boosted trees (XGBoost)",
    weighs_classes=True,
)
EXTRA_TREES = Family(
    "extra_trees",
    EVERY_TASK,
    "tabular",
    ExtraTreesParams,
    "workers.families.random_forest:ExtraTrees",
    "extremely randomised trees (scikit-learn)",
    weighs_classes=True,
)
NAIVE_BAYES = Family(
    "naive_bayes",
    ("classification", "multilabel"),
    "tabular",
    NaiveBayesParams,
    "workers.families.naive_bayes:NaiveBayes",
    "naive Bayes (scikit-learn)",
    weighs_classes=True,
)
MLP = Family(
    "mlp",
    EVERY_TASK,
    "tabular",
    MlpParams,
    "workers.families.mlp:Mlp",
    "multi-layer perceptron (torch)",
    loop=True,
    weighs_classes=True,
)
FT_TRANSFORMER = Family(
    "ft_transformer",
    EVERY_TASK,
    "tabular",
    FtTransformerParams,
    "workers.families.ft_transformer:FtTransformer",
    "transformer over columns (torch)",
    loop=True,
    weighs_classes=True,
    recomputes=True,
)
CNN = Family(
    "cnn",
    ("classification", "multilabel"),
    "image",
    CnnParams,
    "workers.families.cnn:Cnn",
    "convolutional network (torch)",
    loop=True,
    weighs_classes=True,
)
TEXT_LINEAR = Family(
    "text_linear",
    EVERY_TASK,
    "text",
    TextLinearParams,
    "workers.families.text_linear:TextLinear",
    "support vector machine and naive Bayes, ridge on TF-IDF of words and characters",
    weighs_classes=True,
)


@cache
def families() -> dict[str, Family]:
    """Every installed family by name, sorted. Misconfigured when a plug-in registers something else."""
    found: dict[str, Family] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        family = point.load()
        if not isinstance(family, Family):
            raise Misconfigured(
                f"entry point '{point.value}' of group {ENTRY_POINT_GROUP} is not an app.specs.families.Family"
            )
        found[family.name] = family
    return dict(sorted(found.items()))


def family(name: str) -> Family:
    """The family called `name`; InvalidSpec lists the known ones otherwise."""
    known = families()
    if name not in known:
        raise InvalidSpec.at(
            "family", msg=f"unknown family '{name}'; use one of: {', '.join(known)}", type="unknown_family"
        )
    return known[name]
