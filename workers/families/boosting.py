"""What libraries of boosted trees share: the state of early stopping, which an attempt leaves to the next."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from workers.training.files import write_atomically

PATIENCE_FACTOR = EVERY = 5  # a tree is a smaller step than an epoch; stated in EarlyStoppingSpec


@dataclass(slots=True)
class Best:
    """The round with the lowest validation loss so far; 0 where none was looked at."""

    round: int = 0
    loss: float = float("inf")

    @classmethod
    def load(cls, path: Path) -> "Best":
        """Of an earlier attempt, so that a resumed one does not take a later round for the best."""
        return cls(**json.loads(path.read_text())) if path.exists() else cls()

    def save(self, path: Path) -> None:
        """Next to the trees."""
        if self.round:
            write_atomically(path, json.dumps(asdict(self)).encode())
