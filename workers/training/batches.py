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


class Source(Protocol):
    """Rows to learn from."""

    def __len__(self) -> int: ...

    def windows(self, seed: int | None, epoch: int) -> Iterator[Window]:
        """All rows once."""


class Batches:
    """Whole batches by index, much cheaper than collating rows.

    The order, and what `change` makes of a batch, depend on seed and epoch alone. Without a seed rows come as they are.
    """

    def __init__(self, data: Source, size: int, seed: int | None = None, change: Change | None = None) -> None:
        self.data, self.size, self.seed, self.change = data, size, seed, change
        self.epoch: Callable[[], int] = lambda: 0

    def __len__(self) -> int:
        return len(self._sizes())

    def __iter__(self) -> Iterator[Batch]:
        epoch, sizes = self.epoch(), deque(self._sizes())
        rng = np.random.default_rng([self.seed or 0, epoch])
        left: Tensors | None = None
        for found in self.data.windows(self.seed, epoch):
            window, done = found.after(left), 0
            while sizes and done + sizes[0] <= len(window.order):
                rows = window.order[done : done + sizes[0]]
                done += sizes.popleft()
                batch = window.rows.take(rows)
                yield (batch.inputs, batch.y) if self.change is None else self.change(batch.inputs, batch.y, rng)
            left = window.rows.take(window.order[done:])

    def _sizes(self) -> list[int]:
        """Rows of each batch. A last row that is left over in training joins the batch before it."""
        whole, rest = divmod(len(self.data), self.size)
        sizes = [self.size] * whole + [rest] * bool(rest)
        if self.seed is not None and rest == 1 and whole:
            sizes[-2:] = [self.size + 1]  # batch norm cannot learn from one row
        return sizes
