"""Rows in memory, and the batches that a network learns from."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Batch = tuple[tuple[Tensor, ...], Tensor]  # model arguments and the target
Change = Callable[[tuple[Tensor, ...], Tensor, np.random.Generator], Batch]


@dataclass(frozen=True, slots=True)
class Tensors:
    """Rows in memory: model arguments and the target, first axis = rows."""

    inputs: tuple[Tensor, ...]
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


class Batches:
    """Whole batches by index, much cheaper than collating rows.

    The order, and what `change` makes of a batch, depend on seed and epoch alone. Without a seed rows come as they are.
    """

    def __init__(self, data: Tensors, size: int, seed: int | None = None, change: Change | None = None) -> None:
        self.data, self.size, self.seed, self.change = data, size, seed, change
        self.epoch: Callable[[], int] = lambda: 0

    def __len__(self) -> int:
        return len(self._sizes())

    def __iter__(self) -> Iterator[Batch]:
        count, epoch = len(self.data), self.epoch()
        order = torch.arange(count)
        if self.seed is not None:
            order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed * 100_003 + epoch))
        rng = np.random.default_rng([self.seed or 0, epoch])
        for rows in torch.split(order, self._sizes()):
            batch = tuple(x[rows] for x in self.data.inputs), self.data.y[rows]
            yield batch if self.change is None else self.change(*batch, rng)

    def _sizes(self) -> list[int]:
        """Rows of each batch. A last row that is left over in training joins the batch before it."""
        whole, rest = divmod(len(self.data), self.size)
        sizes = [self.size] * whole + [rest] * bool(rest)
        if self.seed is not None and rest == 1 and whole:
            sizes[-2:] = [self.size + 1]  # batch norm cannot learn from one row
        return sizes
