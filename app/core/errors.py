"""Every error that a user or an operator can meet, as one tree.

    AimassError
    ├── InvalidInput            bad input: names the field and the remedy
    │   ├── Malformed           a request that is not in its protocol's form (broken JSON, wrong header)
    │   ├── InvalidSpec         a job spec or a resource that breaks its schema
    │   ├── InvalidData         a data set that cannot be read or learned from
    │   └── InvalidTensor       a prediction instance or tensor that does not fit the signature
    ├── PayloadTooLarge         over a stated limit
    ├── NotFound                no such thing
    ├── Conflict                the thing's state forbids it
    │   └── IdempotencyMismatch the key was used with another body
    ├── Unauthenticated         no key, or an unknown or revoked one
    ├── Forbidden               the key lacks the scope
    ├── NotBuilt                in the contract, not in this release
    ├── Overloaded              a bounded queue is full; carries retry_after_s
    ├── Unavailable             a dependency is not there now; carries retry_after_s
    ├── InsufficientMemory      a model needs more than the budget: names both
    ├── DeadlineExceeded        the caller's time ran out before the answer
    ├── JobError                why a job ended badly
    │   ├── Crashed             its process died: retried
    │   ├── TimedOut            over timeout_s: not retried
    │   ├── MemoryExceeded      over resources.memory_mb: not retried
    │   └── ParityFailed        the exported model does not answer as the trained one: not retried
    ├── Corrupt                 stored bytes do not match their digest
    └── Misconfigured           an operator's setting is wrong; names the setting

`code` is stable and part of the API; `retryable` says whether the same request may succeed later.
HTTP statuses are the gateway's business.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self


@dataclass(frozen=True, slots=True)
class FieldError:
    """One bad field: where it is, what is wrong and how to mend it, and a stable type word."""

    loc: tuple[str | int, ...]
    msg: str
    type: str = "value_error"


class AimassError(Exception):
    """Root of the tree. `detail` is one sentence for the person who has to act on it."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str, *, errors: Sequence[FieldError] = (), retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.retry_after_s = retry_after_s


class InvalidInput(AimassError):
    """Bad input; `errors` names each field and the remedy."""

    code = "invalid_input"

    @classmethod
    def at(cls, *loc: str | int, msg: str, type: str = "value_error") -> Self:  # noqa: A002 - the API's word
        """The common case: one field is wrong."""
        where = ".".join(str(part) for part in loc)
        return cls(f"{where}: {msg}" if where else msg, errors=[FieldError(loc, msg, type)])


class Malformed(InvalidInput):
    """A request that is not in the form of its protocol: broken JSON, a wrong header, a truncated body."""

    code = "malformed"


class InvalidSpec(InvalidInput):
    """A job spec or a resource that breaks its schema."""

    code = "invalid_spec"


class InvalidData(InvalidInput):
    """A data set that cannot be read or learned from."""

    code = "invalid_data"


class InvalidTensor(InvalidInput):
    """A prediction instance or tensor that does not fit the model's signature."""

    code = "invalid_tensor"


class PayloadTooLarge(AimassError):
    """Over a stated limit; the detail names the limit and its setting."""

    code = "payload_too_large"


class NotFound(AimassError):
    """No such thing."""

    code = "not_found"


class Conflict(AimassError):
    """The thing's state forbids the request."""

    code = "conflict"


class IdempotencyMismatch(Conflict):
    """The Idempotency-Key was used before with another body."""

    code = "idempotency_key_reused"


class Unauthenticated(AimassError):
    """No API key, or an unknown or revoked one."""

    code = "unauthenticated"


class Forbidden(AimassError):
    """The key lacks the scope that the request needs."""

    code = "forbidden"


class NotBuilt(AimassError):
    """Part of the contract that this release does not have."""

    code = "not_built"


class Overloaded(AimassError):
    """A bounded queue is full."""

    code = "overloaded"
    retryable = True


class Unavailable(AimassError):
    """A dependency or a model is not there at the moment."""

    code = "unavailable"
    retryable = True


class InsufficientMemory(AimassError):
    """A model needs more memory than this process may use for models, even alone."""

    code = "insufficient_memory"


class DeadlineExceeded(AimassError):
    """The caller's time ran out before the answer was there."""

    code = "deadline_exceeded"
    retryable = True


class JobError(AimassError):
    """Why a job ended badly; not the user's input."""

    code = "job_failed"


class Crashed(JobError):
    """The job's process died; another attempt may succeed."""

    code = "job_crashed"
    retryable = True


class TimedOut(JobError):
    """The job ran longer than its `timeout_s`."""

    code = "job_timed_out"


class MemoryExceeded(JobError):
    """The job needed more than its `resources.memory_mb`."""

    code = "job_memory_exceeded"


class ParityFailed(JobError):
    """The exported ONNX model does not answer as the trained model does."""

    code = "export_parity_failed"


class Corrupt(AimassError):
    """Stored bytes do not match their digest."""

    code = "corrupt"


class Misconfigured(AimassError):
    """An operator's setting is wrong; the detail names the setting and the remedy."""

    code = "misconfigured"
