"""The stubs of the Open Inference Protocol that tritonclient ships, without the clients that it has beside them.

`import tritonclient.grpc` loads those too, and ml_dtypes with them: 3 MiB that nothing in a gateway would use.
"""

import sys
from importlib import import_module
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

import tritonclient

_PACKAGE = "tritonclient.grpc"


def _stubs(*names: str) -> list[Any]:
    """Modules of the package, whose own `__init__` is run only by who imports it later."""
    if _PACKAGE in sys.modules:
        return [import_module(f"{_PACKAGE}.{name}") for name in names]
    found = PathFinder.find_spec("grpc", tritonclient.__path__)
    if found is None:
        raise ModuleNotFoundError(f"No module named '{_PACKAGE}'", name=_PACKAGE)
    bare = ModuleType(_PACKAGE)
    bare.__path__ = list(found.submodule_search_locations or [])
    sys.modules[_PACKAGE] = bare
    try:
        return [import_module(f"{_PACKAGE}.{name}") for name in names]
    finally:
        del sys.modules[_PACKAGE]


model_config_pb2, service_pb2, service_pb2_grpc = _stubs("model_config_pb2", "service_pb2", "service_pb2_grpc")
