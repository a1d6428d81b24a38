"""Model families: what each can learn and which parameters it takes.

The gateway reads descriptors to validate and to document; the job child imports `implementation`. A third party adds a
family by registering a `Family` under the entry point group `aimass.families`.
"""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from app.core.errors import InvalidSpec, Misconfigured
from app.core.signature import Task
from app.specs.base import Spec, field_error

ENTRY_POINT_GROUP = "aimass.families"
DataKind = Literal["tabular", "image"]


class FamilyParams(Spec):
    """Base of every family's `params`."""


class LinearParams(FamilyParams):
    """Logistic regression or ridge on scaled numbers and one-hot categories."""

    regularization: Annotated[float, Field(gt=0, le=1e6, description="L2 strength; larger is simpler")] = 1.0
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


class RandomForestParams(FamilyParams):
    """Random forest (scikit-learn)."""

    n_estimators: Annotated[int, Field(ge=1, le=2000, description="trees")] = 200
    max_depth: Annotated[int | None, Field(ge=1, le=64, description="null: no limit")] = 16
    min_samples_leaf: Annotated[int, Field(ge=1, le=100_000, description="rows a leaf needs")] = 2
    max_features: Annotated[float, Field(gt=0, le=1, description="share of columns tried at a split")] = 0.5


class MlpParams(FamilyParams):
    """Multi-layer perceptron with embeddings for categories (torch)."""

    hidden: Annotated[
        list[Annotated[int, Field(ge=1, le=8192)]], Field(min_length=1, max_length=16, description="units per layer")
    ] = [128, 64]
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    activation: Literal["relu", "gelu", "silu"] = "relu"


class CnnParams(FamilyParams):
    """Convolutional network for images (torch): blocks of convolution, batch norm and ReLU that halve the picture."""

    channels: Annotated[
        list[Annotated[int, Field(ge=4, le=1024)]], Field(min_length=1, max_length=6, description="channels per block")
    ] = [32, 64, 128]
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    image_size: Annotated[
        int | None, Field(ge=8, le=512, description="pixels a side; null: from the data, at most 96")
    ] = None


@dataclass(frozen=True, slots=True)
class Family:
    """A family's descriptor.

    `implementation` is `module:attribute`, imported by the job child alone; it satisfies
    `workers.families.base.Family`. With `loop` it learns by `workers.training.loop`, and so takes `label_smoothing` and
    `ema`; families of pictures take `augment`.
    """

    name: str
    tasks: tuple[Task, ...]
    data: DataKind
    params: type[FamilyParams]
    implementation: str
    summary: str
    loop: bool = False

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


_BOTH: tuple[Task, ...] = ("classification", "regression")
LINEAR = Family(
    "linear", _BOTH, "tabular", LinearParams, "workers.families.linear:Linear", "logistic regression, ridge"
)
GBDT = Family("gbdt", _BOTH, "tabular", GbdtParams, "workers.families.gbdt:Gbdt", "gradient-boosted trees (LightGBM)")
RANDOM_FOREST = Family(
    "random_forest",
    _BOTH,
    "tabular",
    RandomForestParams,
    "workers.families.random_forest:RandomForest",
    "random forest (scikit-learn)",
)
MLP = Family(
    "mlp", _BOTH, "tabular", MlpParams, "workers.families.mlp:Mlp", "multi-layer perceptron (torch)", loop=True
)
CNN = Family(
    "cnn",
    ("classification",),
    "image",
    CnnParams,
    "workers.families.cnn:Cnn",
    "convolutional network (torch)",
    loop=True,
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
