"""Which class of hosts this is, by its processor or by the GPU that models run on."""

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest

from app.core import host
from app.core.errors import Misconfigured
from app.core.host import gpu_name, host_class, host_name, serving_class

GPUS = [b"NVIDIA H200", b"Orin (nvgpu)"]
NO_SUCH_DEVICE = 101


class Driver:
    """NVIDIA's, of a machine with these GPUs."""

    def __init__(self, names: list[bytes]) -> None:
        self._names = names

    def cuInit(self, _flags: int) -> int:  # noqa: N802 - the driver's names
        return 0

    def cuDeviceGet(self, device: Any, number: int) -> int:  # noqa: N802 - the same
        if number >= len(self._names):
            return NO_SUCH_DEVICE
        device._obj.value = number + 70  # a device is not its number
        return 0

    def cuDeviceGetName(self, name: Any, _length: int, device: Any) -> int:  # noqa: N802 - the same
        name.value = self._names[device.value - 70]
        return 0


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    gpu_name.cache_clear()
    yield
    gpu_name.cache_clear()


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver(GPUS))


@pytest.mark.usefixtures("gpus")
def test_a_gpu_is_known_by_its_name():
    assert host_name("cuda:0") == host_name().rpartition(" (")[0] + " (cuda NVIDIA H200)"
    assert host_class(host_name("cuda:0")) == "cuda NVIDIA H200"
    assert host_name("cuda") == host_name("cuda:0")
    assert serving_class("cuda:1") == "cuda Orin [nvgpu]"
    assert serving_class("cpu") == host_class() == host_class(host_name())


@pytest.mark.usefixtures("gpus")
def test_a_gpu_that_is_not_there_names_the_setting():
    with pytest.raises(Misconfigured, match=r"^AIMASS_SERVING_PROVIDER=cuda:2: .* no GPU 2 \(CUDA error 101\).* cpu$"):
        serving_class("cuda:2")


def test_without_a_driver_it_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(host, "_DRIVER", "libnothing.so.1")
    with pytest.raises(Misconfigured, match=r"AIMASS_SERVING_PROVIDER=cuda:0: libnothing\.so\.1.*install the driver"):
        serving_class("cuda:0")
    with pytest.raises(LookupError, match="cannot be loaded"):
        host_name("cuda:0")
