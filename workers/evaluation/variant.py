"""One file of a model version with what was measured of it."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Variant:
    """As the API shows it. `path` is inside the version's folder, None when the file was not kept."""

    name: str
    state: Literal["accepted", "rejected"]
    recipe: dict[str, Any]
    path: str | None
    bytes: int
    metrics: dict[str, float] = field(default_factory=dict)
    latency: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)
