"""Jobs and their states.

    queued ──claim──▶ running ──▶ succeeded | failed | cancelled
      ▲                  │ crash or lost lease, attempts left (after a back-off)
      └──────────────────┘

`attempt` is the fencing token: whoever writes for a job must name the attempt that the row holds.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from app.core.errors import AimassError

MAX_BACKOFF_S = 300.0

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
TERMINAL: frozenset[JobState] = frozenset({"succeeded", "failed", "cancelled"})
DeviceClass = Literal["cpu", "cuda"]
HeartbeatAnswer = Literal["held", "cancel", "lost"]


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run one attempt of a job until it expires unrenewed."""

    job_id: str
    attempt: int
    kind: str
    spec: dict[str, Any]
    timeout_s: float
    memory_mb: int
    checkpoint: dict[str, str] = field(default_factory=dict)  # path -> sha256


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is: 0..1, what it does now, seconds left if known."""

    fraction: float = 0.0
    step: str = ""
    eta_s: float | None = None


@dataclass(frozen=True, slots=True)
class JobFailure:
    """Why a job ended badly, as the API shows it."""

    code: str
    detail: str
    retryable: bool = False
    errors: tuple[dict[str, Any], ...] = ()

    @classmethod
    def of(cls, error: AimassError) -> "JobFailure":
        """From an error of the tree."""
        fields = tuple({"loc": list(e.loc), "msg": e.msg, "type": e.type} for e in error.errors)
        return cls(error.code, error.detail, error.retryable, fields)

    def to_json(self) -> dict[str, Any]:
        """The `error` member of a job."""
        raw: dict[str, Any] = {"code": self.code, "detail": self.detail, "retryable": self.retryable}
        if self.errors:
            raw["errors"] = list(self.errors)
        return raw


@dataclass(frozen=True, slots=True)
class Job:
    """A job as everyone but the queue sees it. Times are seconds since the epoch."""

    id: str
    kind: str
    state: JobState
    spec: dict[str, Any]
    priority: int
    device: DeviceClass
    attempt: int
    max_attempts: int
    progress: Progress
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    worker: str | None = None
    model: str | None = None
    error: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One entry of a job's history: `state`, `progress`, `metric` or `log`. `id` grows with time."""

    id: int
    type: str
    at: float
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One point of a live curve."""

    name: str
    step: int
    value: float
    at: float


@dataclass(frozen=True, slots=True)
class NewJob:
    """What is needed to queue a job."""

    kind: str
    spec: dict[str, Any]
    priority: int = 1
    device: DeviceClass = "cpu"
    timeout_s: float = 3600.0
    memory_mb: int = 8000
    max_attempts: int = 3
    after: tuple[str, ...] = ()
    model: str | None = None


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A live worker agent."""

    id: str
    host: str
    pid: int
    device: str
    started_at: float
    seen_at: float
    job_id: str | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """A queued job that an agent should be told of."""

    job_id: str
    device: DeviceClass
    priority: int


def doubled(backoff_s: float, attempt: int) -> float:
    """Seconds to wait after a failed attempt, 1 …: twice as long each time, and at most MAX_BACKOFF_S.

    Attempts that were given back count as well, and there may be many.
    """
    return min(backoff_s * 2.0 ** min(attempt - 1, 32), MAX_BACKOFF_S)
