"""What this process may use of the host."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from app.core.errors import InvalidSpec
from app.core.host import host_name
from workers.context import JobContext

_LIBRARIES = (
    "aimass", "lightgbm", "lightning", "numpy", "onnx", "onnxruntime", "peft", "polars", "schedulefree", "scikit-learn",
    "torch", "transformers",
)  # fmt: skip


def job_threads(job: JobContext) -> int:
    """Threads of the job's limits, else the processors that this process may run on."""
    limits = job.spec.get("limits") or {}
    return int(limits.get("threads") or len(os.sched_getaffinity(0)))


def choose_device(asked: str, able: Sequence[str]) -> str:
    """`cpu` or `cuda`. InvalidSpec when CUDA is asked for and absent; families that cannot use it take the CPU."""
    if asked == "cpu" or "cuda" not in able:
        return "cpu"
    import torch  # noqa: PLC0415 - loaded for torch families alone

    if torch.cuda.is_available():
        return "cuda"
    if asked == "cuda":
        raise InvalidSpec.at("resources", "device", msg="this worker has no CUDA device; use auto or cpu")
    return "cpu"


def check_devices(count: int, device: str, threads: int) -> None:
    """InvalidSpec when a training is to share more GPUs, or more threads of a CPU, than the job has."""
    if device == "cpu":
        if count > threads:
            msg = f"the job has {threads} threads, and each of {count} processes needs one; take fewer"
            raise InvalidSpec.at("training", "devices", msg=msg)
        return
    import torch  # noqa: PLC0415 - loaded for torch families alone

    if count > (found := torch.cuda.device_count()):
        msg = f"this worker has {found} CUDA devices, not {count}; take fewer, or resources.device cpu"
        raise InvalidSpec.at("training", "devices", msg=msg)


def environment(threads: int, device: str) -> dict[str, Any]:
    """Versions, host and threads, for lineage."""
    return {
        "python": platform.python_version(), "platform": platform.platform(), "host": host_name(), "threads": threads,
        "device": device, "libraries": {name: found for name in _LIBRARIES if (found := _version(name))},
    }  # fmt: skip


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
