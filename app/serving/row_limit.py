"""How many instances a request may have, which is asked before anything else is done with them."""

import math
from collections import Counter
from dataclasses import dataclass, field

from app.serving.waiting import too_many_rows


@dataclass(frozen=True, slots=True)
class RowLimit:
    """Rows beyond `most` can never fit the endpoint's queue; who sends them is counted in `rejected`."""

    most: float = math.inf
    rejected: Counter[str] = field(default_factory=Counter)

    def check(self, rows: int) -> None:
        """PayloadTooLarge for too many."""
        if rows > self.most:
            self.rejected["too_large"] += 1
            raise too_many_rows(rows, self.most)
