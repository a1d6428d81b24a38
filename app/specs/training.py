"""The training loop of a job: optimizer, schedule, what ends it, and what varies or averages."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from app.specs.augment import AugmentSpec
from app.specs.base import Spec
from app.specs.targets import ClassWeight


class OptimizerSpec(Spec):
    """Optimizer of torch families."""

    name: Annotated[
        Literal["adamw", "adam", "sgd", "lion", "schedule_free"],
        Field(description="lion: takes a third to a tenth of adamw's rate; schedule_free: adamw without a schedule"),
    ] = "adamw"
    lr: Annotated[
        Annotated[float, Field(gt=0, le=10)] | Literal["auto"],
        Field(description="peak learning rate; auto: found by a range test before the first epoch"),
    ] = 0.001
    weight_decay: Annotated[float, Field(ge=0, le=10, description="of each step, times the learning rate")] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1, description="sgd only")] = 0.9


class SchedulerSpec(Spec):
    """Learning-rate schedule of torch families."""

    name: Annotated[
        Literal["one_cycle", "cosine", "constant", "plateau"],
        Field(description="one_cycle: up and down once; cosine: down; plateau: down when the validation loss stands"),
    ] = "one_cycle"
    warm_up: Annotated[
        float | None,
        Field(ge=0, le=0.9, description="share of steps in which the rate rises; null: 0.3 of one_cycle, else none"),
    ] = None
    factor: Annotated[float, Field(gt=0, lt=1, description="plateau: what the rate is multiplied by")] = 0.3
    patience: Annotated[
        int, Field(ge=0, le=10_000, description="plateau: epochs without a better validation loss before that")
    ] = 2

    @field_validator("warm_up")
    @classmethod
    def _plateau_starts_at_its_peak(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value and info.data.get("name") == "plateau":
            raise ValueError("plateau lowers the rate by epochs and has no warm-up; leave it out")
        return value


class EarlyStoppingSpec(Spec):
    """Stop when the validation loss has not improved by `min_delta` for `patience` epochs (or 5x as many trees)."""

    patience: Annotated[int, Field(ge=1, le=10_000, description="epochs without a better validation loss")] = 10
    min_delta: Annotated[float, Field(ge=0, le=1e6, description="by which a loss has to be better to count")] = 0.0


class FreezeSpec(Spec):
    """Weights that do not learn, for some epochs or at all; their norms and dropout act as in evaluation."""

    layers: Annotated[
        list[str], Field(min_length=1, max_length=1000, description="beginnings of weights' names, such as `stem`")
    ]
    epochs: Annotated[int | None, Field(ge=1, le=100_000, description="then all learn together; null: never")] = None


class TrainingSpec(Spec):
    """The training loop. Families without a loop use `seed`, `early_stopping` and `class_weight` alone."""

    epochs: Annotated[int, Field(ge=1, le=100_000, description="at most; each sees all training rows once")] = 20
    batch_size: Annotated[int, Field(ge=1, le=65_536, description="rows of all devices together")] = 256
    optimizer: Annotated[OptimizerSpec, Field(description="how weights are changed")] = OptimizerSpec()
    scheduler: Annotated[SchedulerSpec, Field(description="of the learning rate")] = SchedulerSpec()
    early_stopping: Annotated[EarlyStoppingSpec | None, Field(description="by validation rows; null: all epochs")] = (
        EarlyStoppingSpec()
    )
    gradient_clip: Annotated[float | None, Field(gt=0, le=1e6, description="norm; null: off")] = 1.0
    accumulate: Annotated[int, Field(ge=1, le=1024, description="batches per optimizer step")] = 1
    precision: Annotated[Literal["32", "bf16", "fp16"], Field(description="of the products; fp16 needs CUDA")] = "32"
    devices: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="processes that share every batch: GPUs of this machine, or shares of the job's threads",
        ),
    ] = 1
    gradient_checkpointing: Annotated[
        bool, Field(description="compute blocks anew for the gradient: less memory, a third more time; same weights")
    ] = False
    label_smoothing: Annotated[
        float, Field(ge=0, lt=1, description="share of a label that is spread over all classes")
    ] = 0.0
    ema: Annotated[
        float | None,
        Field(ge=0.5, lt=1, description="keep a moving average of the weights of this decay, such as 0.999; null: off"),
    ] = None
    swa: Annotated[
        float | None,
        Field(gt=0, lt=1, description="keep the mean of the weights of all epochs after this share of them; null: off"),
    ] = None
    freeze: Annotated[FreezeSpec | None, Field(description="weights that stay as they are; null: none")] = None
    augment: Annotated[AugmentSpec | None, Field(description="networks over pictures and texts only")] = None
    class_weight: Annotated[
        ClassWeight | None,
        Field(
            description="how much a row counts by its label, 1 if it is not named; balanced: every class as much as "
            "any other; scaled to 1 on average over the training rows",
            examples=["balanced", {"yes": 5.0}],
        ),
    ] = None
    seed: Annotated[int, Field(ge=0, lt=2**31, description="of weights, splits and the order of rows")] = 42
    checkpoint_every_s: Annotated[float, Field(ge=0, le=86_400, description="0: after every epoch")] = 30.0

    @model_validator(mode="before")
    @classmethod
    def _schedule_of_schedule_free(cls, data: Any) -> Any:  # noqa: ANN401 - whatever was sent
        if isinstance(data, dict) and _is_schedule_free(data.get("optimizer")):
            return {"scheduler": {"name": "constant"}, **data}
        return data

    @field_validator("devices")
    @classmethod
    def _a_row_for_each_device(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("batch_size", value):
            raise ValueError("a batch has fewer rows than there are devices; raise batch_size or take fewer")
        return value

    @field_validator("scheduler", "ema", "swa")
    @classmethod
    def _schedule_free_is_alone(cls, value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - of either field
        usual = value is None or (isinstance(value, SchedulerSpec) and value.name == "constant")
        if not usual and _is_schedule_free(info.data.get("optimizer")):
            raise ValueError("schedule_free has no schedule but a constant one, and averages weights; leave it out")
        return value


def _is_schedule_free(optimizer: Any) -> bool:  # noqa: ANN401 - whatever was sent, or what was read
    name = optimizer.get("name") if isinstance(optimizer, dict) else getattr(optimizer, "name", None)
    return bool(name == "schedule_free")
