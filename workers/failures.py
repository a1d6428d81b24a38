"""Why a job that has not told its end has failed, as the API shows it."""

from app.core.errors import Crashed, MemoryExceeded, TimedOut
from app.core.jobs import JobFailure, Lease

# Limits of jobs that the platform itself queues are settings, which their senders cannot raise.
_TIME_SETTINGS = {"import": "AIMASS_LIMIT_IMPORT_TIMEOUT_S"}
_MEMORY_DETAIL = "the job needs more than resources.memory_mb = {}; raise it or use less data"


def timed_out(lease: Lease) -> JobFailure:
    """The job took longer than it may."""
    setting = _TIME_SETTINGS.get(lease.kind, "timeout_s")
    return JobFailure.of(TimedOut(f"the job ran longer than {setting} = {lease.timeout_s:g}"))


def too_large(lease: Lease) -> JobFailure:
    """The job took more memory than it may."""
    return JobFailure.of(MemoryExceeded(_MEMORY_DETAIL.format(lease.memory_mb)))


def crashed(code: int | None) -> JobFailure:
    """The child ended with this status."""
    how = f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"
    return JobFailure.of(Crashed(f"the job's process ended with {how}"))


def internal(error: Exception) -> JobFailure:
    """Our own mistake."""
    return JobFailure("internal", f"{type(error).__name__}: the worker's log says more")
