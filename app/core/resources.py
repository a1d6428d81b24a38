"""Data sets, models and endpoints as the rest of the application sees them. Times are seconds since the epoch."""

from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from app.core.host import host_class

T = TypeVar("T")

DatasetState = Literal["ingesting", "ready", "failed"]
VariantState = Literal["accepted", "rejected"]
BASE_VARIANT = "fp32"
Generation = tuple[float, int]
SAME_SPEED = 0.05  # throughputs this close are one to a benchmark that shares its machine


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a data set or model version: its path there, and the content it stands for."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class DatasetVersion:
    """One immutable upload and what was made of it."""

    id: str
    name: str
    version: int
    kind: str
    state: DatasetState
    filename: str
    bytes: int
    sha256: str
    created_at: float
    rows: int | None = None
    columns: tuple[dict[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    rejected: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    job_id: str | None = None
    files: tuple[StoredFile, ...] = ()
    source: dict[str, Any] | None = None  # where it was fetched from, if it was; `sha256` is empty until then


@dataclass(frozen=True, slots=True)
class Dataset:
    """A named sequence of versions."""

    name: str
    latest: int
    created_at: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What a variant is on one class of hosts."""

    host: str
    state: VariantState
    reason: str | None
    metrics: dict[str, float]
    latency: dict[str, Any]

    @property
    def items_per_s(self) -> float:
        """Measured throughput at the throughput batch; 0 if it was not measured."""
        return float(self.latency.get("items_per_s", 0.0))


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run a version: `fp32` is the base, others are compressed, measured and accepted or rejected."""

    name: str
    state: VariantState
    reason: str | None
    recipe: dict[str, Any]
    path: str | None  # None: a rejected variant's file is not kept
    bytes: int
    metrics: dict[str, float]
    latency: dict[str, Any]
    created_at: float = 0.0
    elsewhere: tuple[Measured, ...] = ()  # on other kinds of hosts than the one that made it

    def measured(self, host: str) -> Measured | None:
        """What was measured on this class of hosts; None if nothing was."""
        made = host_class(self.latency["host"]) if "host" in self.latency else host
        own = Measured(made, self.state, self.reason, self.metrics, self.latency)
        return next((one for one in (*self.elsewhere, own) if one.host == host), None)

    def serves(self, host: str) -> bool:
        """Whether it may answer on this class of hosts: the base may anywhere, others where they were accepted."""
        if self.state != "accepted" or self.name == BASE_VARIANT:
            return self.state == "accepted"
        found = self.measured(host)
        return found is not None and found.state == "accepted"


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One trained model: an immutable folder of files, its measurements and its origin."""

    id: str
    model: str
    version: int
    state: str
    task: str
    family: str
    main_metric: str
    metrics: dict[str, float]
    signature: dict[str, Any]
    schema: dict[str, Any]
    lineage: dict[str, Any]
    digest: str
    created_at: float
    variants: tuple[Variant, ...] = ()
    files: tuple[StoredFile, ...] = ()

    def variant(self, name: str | None, host: str) -> Variant | None:
        """The variant called `name` that may answer on this class of hosts.

        Without a name the smallest of those as fast there as the fastest; the base, if none was measured there. Of
        what was timed by turns with the base it is known how many times as fast it is, whatever else the host did when
        the base was timed alone.
        """
        able = [v for v in self.variants if v.serves(host)]
        if name is not None:
            return next((v for v in able if v.name == name), None)
        measured = [(v, found) for v in able if (found := v.measured(host)) is not None]
        by_turns = all("speed_up" in found.latency for v, found in measured if v.name != BASE_VARIANT)
        speeds = [(v, found.latency.get("speed_up", 1.0) if by_turns else found.items_per_s) for v, found in measured]
        if by_turns:  # beside the others the base was timed on this class too, though it may not be listed
            speeds += [(v, 1.0) for v in able if v.name == BASE_VARIANT and v.measured(host) is None]
        fastest = max((speed for _, speed in speeds), default=0.0)
        quick = [v for v, speed in speeds if speed >= fastest * (1 - SAME_SPEED)] or able
        return min(quick, key=lambda v: v.bytes, default=None)


@dataclass(frozen=True, slots=True)
class Model:
    """A named sequence of versions."""

    name: str
    latest: int
    created_at: float
    aliases: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AliasMove:
    """One entry of an alias's append-only history; `version` is None where the alias was removed."""

    alias: str
    version: int | None
    previous: int | None
    at: float
    by: str
    reason: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A name that callers predict with, and where its traffic goes. `revision` grows with each change."""

    name: str
    model: str
    version: int
    variant: str
    spec: dict[str, Any]
    revision: int
    created_at: float
    updated_at: float

    @property
    def generation(self) -> Generation:
        """Grows with every state that the name ever had: one that is deleted and made again starts at revision 1."""
        return self.created_at, self.revision


@dataclass(frozen=True, slots=True)
class Applied:
    """What a gateway process has made of an endpoint: the generation that it tried last, and why that failed, if so."""

    generation: Generation
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key without its secret."""

    id: str
    name: str
    prefix: str
    scopes: tuple[str, ...]
    created_at: float
    revoked_at: float | None = None


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a keyset list."""

    items: tuple[T, ...]
    next_cursor: str | None
