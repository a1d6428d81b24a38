"""Which kind of host this is: what compressed models answer, and how fast, depends on it."""

import ctypes
import platform
from functools import cache
from pathlib import Path

from app.core.errors import Misconfigured

_ISA = ("avx512_vnni", "avx_vnni", "avx512_bf16", "avx512f", "avx2", "asimddp", "asimd")  # what kernels are chosen by
_DRIVER = "libcuda.so.1"
_LONGEST = 256  # bytes of a GPU's name


def host_name(device: str = "cpu") -> str:
    """The processor's name, and what kernels are chosen by: its widest instruction sets, or the GPU of `cuda:N`.

    LookupError, saying why, if the GPU's name cannot be told.
    """
    name, found = _processor()
    return f"{name} ({found if device == 'cpu' else f'cuda {gpu_name(number_of(device))}'})"


def host_class(name: str | None = None) -> str:
    """The instruction sets, or the GPU, in a host's name, this host's by default: hosts of a class choose alike."""
    return (name or host_name()).rpartition(" (")[2].removesuffix(")")


def serving_class(provider: str) -> str:
    """The class of this host where models run on `provider`, as AIMASS_SERVING_PROVIDER has it.

    Misconfigured if the GPU's name cannot be told.
    """
    try:
        return host_class(host_name(provider))
    except LookupError as error:
        raise Misconfigured(f"AIMASS_SERVING_PROVIDER={provider}: {error}, or set it to cpu") from None


def number_of(device: str) -> int:
    """Of a GPU, `cuda:1` the second; `cuda` alone is the first."""
    return int(device.partition(":")[2] or 0)


@cache
def gpu_name(number: int) -> str:
    """As NVIDIA's driver counts this process's GPUs, so that CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER are followed.

    LookupError says what is missing.
    """
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        raise LookupError(f"{_DRIVER}, which NVIDIA's driver brings, cannot be loaded; install the driver") from None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(_LONGEST)
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), number)
        or driver.cuDeviceGetName(name, _LONGEST, device)
    )
    if failed:
        raise LookupError(
            f"NVIDIA's driver shows this process no GPU {number} (CUDA error {failed}); look at nvidia-smi and at "
            "CUDA_VISIBLE_DEVICES, and take a number that is there"
        )
    return name.value.decode(errors="replace").translate({ord("("): "[", ord(")"): "]"})  # a host's name has its own


@cache
def _processor() -> tuple[str, str]:
    """Its name, and its widest instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown processor", f"{platform.machine()} of {platform.node()}"
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    found = "+".join(name for name in _ISA if name in flags)
    return facts.get("model name", "processor"), found or platform.machine()
