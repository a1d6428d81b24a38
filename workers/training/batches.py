"""Rows in memory, all or a window of them at a time, and the batches that a network learns from."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

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

    def take(self, rows: Tensor) -> "Tensors":
        """The chosen rows."""
        return Tensors(tuple(x[rows] for x in self.inputs), self.y[rows])

    def windows(self, seed: int | None, epoch: int) -> Iterator["Window"]:
        """All rows, in an order that seed and epoch draw; as they are without a seed."""
        yield Window.shuffled(self, seed, epoch)


def joined(parts: Sequence[Tensors]) -> Tensors:
    """The rows of all parts, in turn."""
    columns = zip(*(part.inputs for part in parts), strict=True)
    return Tensors(tuple(torch.cat(column) for column in columns), torch.cat([part.y for part in parts]))


@dataclass(frozen=True, slots=True)
class Window:
    """Rows that are in memory together, and the order in which they are learnt from."""

    rows: Tensors
    order: Tensor

    @classmethod
    def shuffled(cls, rows: Tensors, seed: int | None, epoch: int) -> "Window":
        """In an order that seed and epoch draw."""
        if seed is None:
            return cls(rows, torch.arange(len(rows)))
        return cls(rows, torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed * 100_003 + epoch)))

    def after(self, left: Tensors | None) -> "Window":
        """With rows that the window before has left, first."""
        if left is None or not len(left):
            return self
        return Window(joined([left, self.rows]), torch.cat([torch.arange(len(left)), self.order + len(left)]))


@dataclass(frozen=True, slots=True)
class Rank:
    """Which process this is of those that learn together; each takes every `size`-th row of a batch."""

    number: int = 0
    size: int = 1


ALONE = Rank()


class Source(Protocol):
    """Rows to learn from."""

    def __len__(self) -> int: ...

    def windows(self, seed: int | None, epoch: int) -> Iterator[Window]:
        """All rows once."""


class Batches:
    """Whole batches by index, much cheaper than collating rows.

    The order, and what `change` makes of a batch, depend on seed, epoch and rank alone. Without a seed rows come as
    they are. `size` is that of the batches that all ranks share; each rank has a row of every batch.
    """

    def __init__(
        self, data: Source, size: int, seed: int | None = None, change: Change | None = None, rank: Rank = ALONE
    ) -> None:
        self.data, self.size, self.seed, self.change, self.rank = data, size, seed, change, rank
        self.epoch: Callable[[], int] = lambda: 0

    def __len__(self) -> int:
        return len(self._sizes())

    def __iter__(self) -> Iterator[Batch]:
        epoch, sizes = self.epoch(), deque(self._sizes())
        rng = np.random.default_rng([self.seed or 0, epoch, *[self.rank.number] * (self.rank.size > 1)])
        left: Tensors | None = None
        for found in self.data.windows(self.seed, epoch):
            window, done = found.after(left), 0
            while sizes and done + sizes[0] <= len(window.order):
                rows = window.order[done + self.rank.number : done + sizes[0] : self.rank.size]
                done += sizes.popleft()
                batch = window.rows.take(rows)
                yield (batch.inputs, batch.y) if self.change is None else self.change(batch.inputs, batch.y, rng)
            left = window.rows.take(window.order[done:])

    def _sizes(self) -> list[int]:
        """Rows of each batch. Rows that are left over, too few to be one, join the batch before them."""
        whole, rest = divmod(len(self.data), self.size)
        sizes = [self.size] * whole + [rest] * bool(rest)
        least = self.rank.size if self.seed is None else max(2, self.rank.size)  # batch norm cannot learn from one row
        if whole and 0 < rest < least:
            sizes[-2:] = [self.size + rest]
        return sizes
