"""Job specs: the body of `POST /api/v1/jobs`, validated whole before anything is queued."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field

from app.core.errors import InvalidSpec
from app.core.signature import Task
from app.specs.base import NO_NUL, Name, Spec, VersionNumber
from app.specs.clean import CleanStep
from app.specs.compression import CompressBudget
from app.specs.endpoints import EndpointName
from app.specs.evaluation import ORDINAL_METRICS, EvaluationSpec, MetricName, Slices, default_metric, metrics_of
from app.specs.families import Family, family
from app.specs.features import FeatureSpec
from app.specs.mapping import Mapping
from app.specs.recipes import CompressRecipe
from app.specs.splits import SplitSpec
from app.specs.targets import check_targets
from app.specs.training import TrainingSpec

Priority = Literal[0, 1, 2]
_DATASET = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,99})@(?P<version>[1-9][0-9]{0,8})$")


def parse_dataset(ref: str) -> tuple[str, int]:
    """Split `name@version`; ValueError says the form."""
    match = _DATASET.fullmatch(ref)
    if not match:
        raise ValueError(f"'{ref}' is not of the form name@version, such as telco@1")
    return match["name"], int(match["version"])


def _check_dataset(value: Any) -> Any:  # noqa: ANN401 - pydantic hands over whatever was sent
    if isinstance(value, str):
        parse_dataset(value)
    return value


DatasetRef = Annotated[str, BeforeValidator(_check_dataset), Field(examples=["telco@1"])]


class Resources(Spec):
    """What one job may use."""

    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        Field(description="auto: learn on a GPU if the worker has one; cuda: on a GPU, and measure variants there too"),
    ] = "auto"
    memory_mb: Annotated[int, Field(ge=256, le=4_000_000, description="the job is killed above this")] = 8000


class DeploySpec(Spec):
    """Route an endpoint to the new version once it is ready, to its best accepted variant.

    An endpoint that exists keeps its batching, and must serve versions of the same model.
    """

    endpoint: EndpointName


class JobSpec(Spec):
    """What every kind of job takes."""

    priority: Annotated[Priority, Field(description="0 first, 2 last")] = 1
    resources: Resources = Resources()
    timeout_s: Annotated[float, Field(gt=0, le=2_592_000, description="the job fails after this")] = 3600.0
    after: Annotated[
        list[Annotated[str, Field(pattern=NO_NUL)]],
        Field(description="ids of jobs that must succeed first", max_length=100),
    ] = []


class TrainSpec(JobSpec):
    """Train a model of one family on one data set version."""

    kind: Literal["train"]
    model: Name
    dataset: DatasetRef
    task: Task
    target: Annotated[str, Field(min_length=1)]
    ordinal: Annotated[
        list[str] | None,
        Field(
            min_length=3,
            max_length=100,
            description="classes that have an order: all labels, the lowest first",
            examples=[["low", "medium", "high"]],
        ),
    ] = None
    separator: Annotated[
        str | None, Field(min_length=1, max_length=10, description="multilabel: between the labels of a cell; null: |")
    ] = None
    family: Annotated[str, Field(examples=["gbdt"])]
    params: Annotated[dict[str, Any], Field(description="of the family; see GET /api/v1/families")] = {}
    features: FeatureSpec = FeatureSpec()
    clean: Annotated[list[CleanStep], Field(max_length=100)] = []
    split: SplitSpec = SplitSpec()
    metrics: Annotated[
        list[MetricName], Field(description="first = main metric; default: roc_auc (2 classes), accuracy, rmse")
    ] = []
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    compress: CompressBudget | None = None
    deploy: DeploySpec | None = None

    def main_metric(self, n_classes: int) -> str:
        """The first that is named, or the usual one."""
        return next(iter(self.metrics), default_metric(self.task, n_classes))

    def dividing_columns(self) -> list[tuple[tuple[str | int, ...], str]]:
        """(where, name) of each column that divides rows: into parts, or into slices."""
        named: list[tuple[tuple[str | int, ...], str]] = []
        if self.split.by is not None:
            named.append((("split", self.split.by[0]), self.split.by[1]))
        return named + [(("evaluation", "slices", i), name) for i, name in enumerate(self.evaluation.slices)]

    def check_family(self) -> Self:
        """Fill `params` with the family's defaults. InvalidSpec names what does not fit it or the task."""
        chosen = family(self.family)
        if self.task not in chosen.tasks:
            raise InvalidSpec.at("task", msg=f"family '{chosen.name}' does {', '.join(chosen.tasks)}, not {self.task}")
        for name in self.metrics:
            if name not in metrics_of(self.task):
                raise InvalidSpec.at("metrics", msg=f"'{name}' is not a metric of {self.task}")
            if name in ORDINAL_METRICS and self.ordinal is None:
                raise InvalidSpec.at("metrics", msg=f"'{name}' takes classes that have an order; name it in ordinal")
        chosen.check_features(self.features.types, steps=len(self.features.steps))
        self._check_loop(chosen)
        self._check_network(chosen)
        check_targets(self, chosen)
        if self.split.method == "stratified" and self.task != "classification":
            raise InvalidSpec.at("split", "method", msg=f"stratified needs classes; use random for {self.task}")
        for loc, column in self.dividing_columns():
            if column == self.target:
                raise InvalidSpec.at(*loc, msg=f"'{column}' is the target; name another column")
        return self.model_copy(update={"params": chosen.validate(self.params).model_dump(mode="json")})

    def _check_network(self, chosen: Family) -> None:
        """InvalidSpec names an option of the training loop that the family's network cannot follow."""
        if self.training.gradient_checkpointing and not chosen.recomputes:
            msg = f"'{chosen.name}' has no blocks that could be computed anew; leave it out"
            raise InvalidSpec.at("training", "gradient_checkpointing", msg=msg)
        if self.training.freeze and self.params.get("lora") is not None:
            msg = "lora holds all weights but its own and the last layer's; leave one of them out"
            raise InvalidSpec.at("training", "freeze", msg=msg)

    def _check_loop(self, chosen: Family) -> None:
        """InvalidSpec names an option of the training loop that family or task cannot follow."""
        augment = self.training.augment
        if augment is not None and (chosen.data == "tabular" or not (chosen.loop or chosen.tries)):
            msg = f"'{chosen.name}' learns from {chosen.data} data; augment is for networks over pictures and texts"
            raise InvalidSpec.at("training", "augment", msg=msg)
        for name in augment.unfit(chosen.data) if augment is not None else ():
            msg = f"'{chosen.name}' learns from {chosen.data} data, which has no {name}; leave it out"
            raise InvalidSpec.at("training", "augment", name, msg=msg)
        for name in ("label_smoothing", "ema", "swa", "freeze"):
            if getattr(self.training, name) and not chosen.loop:
                raise InvalidSpec.at("training", name, msg=f"'{chosen.name}' has no training loop; leave it out")
        if self.training.devices > 1 and not chosen.loop:
            msg = f"'{chosen.name}' has no training loop that devices could share; leave it out"
            raise InvalidSpec.at("training", "devices", msg=msg)
        if self.training.ema and self.training.swa:
            raise InvalidSpec.at("training", "swa", msg="ema averages weights already; leave one of them out")
        if self.training.label_smoothing and self.task != "classification":
            msg = f"{self.task} has no labels of which one is right; leave it out"
            raise InvalidSpec.at("training", "label_smoothing", msg=msg)
        for name in ("mixup", "cutmix"):
            if self.task == "multilabel" and getattr(self.training.augment, name, False):
                raise InvalidSpec.at("training", "augment", name, msg="blends pictures of one label each; leave it out")


class CompressSpec(JobSpec):
    """Make compressed variants of a model version and measure each on this host.

    A version that was trained here is judged by the rows of its own training; an imported one needs a data set with
    labels, which is divided into rows to calibrate with, rows that decide, and rows that are reported.
    """

    kind: Literal["compress"]
    model: Name
    version: VersionNumber
    budget: CompressBudget = CompressBudget()
    recipes: Annotated[
        list[CompressRecipe],
        Field(
            max_length=50,
            description="measure these alone, such as the recipe.steps of a variant; none: those that suit the graph",
            examples=[[[{"step": "fuse"}, {"step": "quantize", "method": "weights", "bits": 4}]]],
        ),
    ] = []
    dataset: Annotated[DatasetRef | None, Field(description="for imported versions only")] = None
    mapping: Annotated[Mapping | None, Field(description="for imported versions only")] = None


class EvaluateSpec(JobSpec):
    """Judge every accepted variant of a model version by a data set with labels.

    The data set that the version was trained on judges by its test rows alone.
    """

    kind: Literal["evaluate"]
    model: Name
    version: VersionNumber
    dataset: DatasetRef
    mapping: Annotated[Mapping | None, Field(description="for imported versions only")] = None
    slices: Slices = []
    plots: Annotated[bool, Field(description="draw plots of the full model, which takes half a second")] = True


class MeasureSpec(JobSpec):
    """Measure every accepted variant of a model version on this host, as the job that made it did on its own.

    Compressed models may answer otherwise on other processors: on a class of hosts where a variant was not measured, or
    is not good, gateways serve fp32.
    """

    kind: Literal["measure"]
    model: Name
    version: VersionNumber
    budget: Annotated[CompressBudget | None, Field(description="null: the one that each variant was made within")] = (
        None
    )
    dataset: Annotated[DatasetRef | None, Field(description="for imported versions only")] = None
    mapping: Annotated[Mapping | None, Field(description="for imported versions only")] = None


class ReproduceSpec(JobSpec):
    """Train a version anew from its own spec and data, and compare: rows, graph, answers, metrics, environment.

    The job's result is the comparison; no version is made. Its `verdict` is `identical` (the same graph, or the same
    answers to all test rows), `equivalent` (the same split, and every metric within the 95 % interval of the
    version's) or `different`.
    """

    kind: Literal["reproduce"]
    model: Name
    version: VersionNumber


class IngestSpec(JobSpec):
    """Parse and profile an uploaded file; queued by the platform when data is uploaded."""

    kind: Literal["ingest"] = "ingest"
    dataset: DatasetRef
    format: Literal["auto", "tabular", "image"] = "auto"
    filename: str


class ImportMetadata(Spec):
    """What the sender says of an imported model."""

    description: Annotated[str, Field(pattern=NO_NUL, description="for the model card")] = ""
    batched: Annotated[
        bool | None,
        Field(
            description="may rows of several requests share a run? null: found out on made-up rows; false: never; "
            "true: the import fails if an answer was seen to depend on the rows beside it"
        ),
    ] = None


class ImportSpec(JobSpec):
    """Check and describe an ONNX model that was not trained here; queued by the platform when it is uploaded."""

    kind: Literal["import"] = "import"
    model: Name
    upload: Annotated[str, Field(description="owner of the uploaded files until the job ends")]
    files: Annotated[list[str], Field(description="names of the uploaded files")]
    metadata: ImportMetadata = ImportMetadata()


SubmittedSpec = TrainSpec | CompressSpec | EvaluateSpec | MeasureSpec | ReproduceSpec
SUBMITTED: dict[str, type[SubmittedSpec]] = {
    "train": TrainSpec, "compress": CompressSpec, "evaluate": EvaluateSpec, "measure": MeasureSpec,
    "reproduce": ReproduceSpec,
}  # fmt: skip
AnyJobSpec = Annotated[SubmittedSpec, Field(discriminator="kind")]
NOT_BUILT_KINDS = frozenset({"tune", "explain", "ensemble", "predict"})
