"""The model repository extension over one host, without a registry."""

from collections.abc import Sequence

from app.core.errors import NotFound
from app.gateway.predict.ports import Listed
from app.serving.host import Host, ModelSource


class HostRepository:
    """`app.gateway.predict.ports.Repository` whose endpoints are those that the host has served."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._unloaded: dict[str, ModelSource] = {}

    async def index(self) -> Sequence[Listed]:
        """What is loaded and what was."""
        loaded = [Listed(s.source.endpoint, s.version, "READY", None) for s in self._host.models()]
        gone = [Listed(name, str(s.version), "UNAVAILABLE", "unloaded") for name, s in self._unloaded.items()]
        return sorted([*loaded, *gone], key=lambda item: item.name)

    async def load(self, name: str) -> None:
        """Load what was unloaded; what is loaded stays."""
        if name in self._unloaded:
            await self._host.swap(await self._host.load(self._unloaded.pop(name)))
        elif self._host.get(name) is None:
            raise NotFound(f"there is no endpoint '{name}'")

    async def unload(self, name: str) -> None:
        """Keep where it came from."""
        served = self._host.get(name)
        if served is None:
            raise NotFound(f"there is no endpoint '{name}'")
        self._unloaded[name] = served.source
        await self._host.remove(name)
        self._host.expect(self._unloaded)
