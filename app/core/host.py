"""Which kind of host this is: what compressed models answer, and how fast, depends on it."""

import platform
from functools import cache
from pathlib import Path

_ISA = ("avx512_vnni", "avx_vnni", "avx512_bf16", "avx512f", "avx2", "asimddp", "asimd")  # what kernels are chosen by


@cache
def host_name() -> str:
    """The processor's name and the widest instruction sets that kernels are chosen by."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"unknown processor ({platform.machine()} of {platform.node()})"
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    found = "+".join(name for name in _ISA if name in flags)
    return f"{facts.get('model name', 'processor')} ({found or platform.machine()})"


def host_class(name: str | None = None) -> str:
    """The instruction sets in a host's name, this host's by default: hosts of a class choose the same kernels."""
    return (name or host_name()).rpartition(" (")[2].removesuffix(")")


def serving_class(provider: str) -> str:
    """The class of this host where models run on `provider`: no compressed model is measured on a GPU."""
    return host_class() if provider == "cpu" else provider.partition(":")[0]
