"""Who is asking."""

from dataclasses import dataclass
from typing import Literal

from app.core.errors import Forbidden

Scope = Literal["read", "predict", "train", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "predict", "train", "admin")


@dataclass(frozen=True, slots=True)
class Principal:
    """A verified API key. `admin` implies every other scope."""

    key_id: str
    name: str
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        """True if the key has the scope."""
        return scope in self.scopes or "admin" in self.scopes

    def require(self, scope: Scope) -> None:
        """Forbidden unless the key has the scope."""
        if not self.may(scope):
            raise Forbidden(f"the key '{self.name}' lacks the scope '{scope}'")
