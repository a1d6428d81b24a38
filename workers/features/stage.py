"""A fitted step: nodes that read some columns of a table and put others in their place.

The nodes are the only implementation. Training rows go through them in ONNX Runtime as served rows do, so the two
cannot differ. Numbers are FP64 between the steps: their sums hardly depend on the size of a batch then.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from app.core.signature import Column, ColumnType, Signature, Tensor
from workers.export.graph import Graph
from workers.export.runtime import open_session, predict
from workers.learning import Array, Inputs

Kind = Literal["numeric", "categorical"]
KINDS: tuple[Kind, ...] = ("numeric", "categorical")
Nodes = Callable[[Graph, str], str]  # from the name of a block [N, columns] to that of the block made of it
_BATCH = 65_536  # rows that go through the nodes at once
_CELLS = 4_000_000  # numbers that the nodes may hold of them at once, in arrays wider than the block
_TYPES: Mapping[Kind, Literal["FP64", "BYTES"]] = {"numeric": "FP64", "categorical": "BYTES"}


@dataclass(frozen=True, slots=True)
class Table:
    """Columns by tensor, and the tensors: `numeric` FP64 [N, n], NaN = missing; `categorical` str [N, m], "" = missing.

    Both tensors are there, perhaps without columns.
    """

    columns: Mapping[Kind, tuple[tuple[str, ColumnType], ...]]
    tensors: Mapping[Kind, Array]

    @classmethod
    def of(cls, signature: Signature, inputs: Inputs) -> "Table":
        """The inputs of a model of tables."""
        rows = len(next(iter(inputs.values())))
        empty = {"numeric": np.zeros((rows, 0)), "categorical": np.zeros((rows, 0), object)}
        tensors: dict[Kind, Array] = {kind: inputs.get(kind, empty[kind]) for kind in KINDS}
        tensors["numeric"] = tensors["numeric"].astype(np.float64)
        found = {kind: sorted((c for c in signature.columns if c.tensor == kind), key=_index) for kind in KINDS}
        return cls({kind: tuple((c.name, c.type) for c in columns) for kind, columns in found.items()}, tensors)

    def __len__(self) -> int:
        return len(self.tensors["numeric"])

    @property
    def width(self) -> int:
        """Columns of both tensors."""
        return sum(map(len, self.columns.values()))

    def names(self, kind: Kind) -> list[str]:
        """In the tensor's order."""
        return [name for name, _ in self.columns[kind]]

    def signature_columns(self) -> tuple[Column, ...]:
        """As a signature lists them."""
        return tuple(
            Column(name, type_, kind, index, nullable=True)
            for kind in KINDS
            for index, (name, type_) in enumerate(self.columns[kind])
        )


def _index(column: Column) -> int:
    return column.index


@dataclass(frozen=True, slots=True)
class Stage:
    """Reads columns of the tensor `kind`, drops some of it, and appends the columns `made` to the tensor `makes`.

    `crossed` is what training rows get in place of the nodes' block, if that is something else. `cells` are the numbers
    that the nodes hold of a row at once, where those are many more than they read or make.
    """

    kind: Kind
    read: tuple[int, ...] = ()
    drop: tuple[int, ...] = ()
    made: tuple[tuple[str, ColumnType], ...] = ()
    makes: Kind = "numeric"
    nodes: Nodes | None = None
    crossed: Array | None = None
    cells: int = 1

    def apply(self, table: Table, *, learnt: bool = False) -> Table:
        """The table after it. `learnt`: these are the training rows that it was fitted on."""
        columns, tensors = dict(table.columns), dict(table.tensors)
        block = None
        if self.nodes is not None:
            read = table.tensors[self.kind][:, list(self.read)]
            block = self.crossed if learnt and self.crossed is not None else run(self.nodes, read, self)
        kept = self._kept(len(columns[self.kind]))
        columns[self.kind] = tuple(columns[self.kind][j] for j in kept)
        tensors[self.kind] = tensors[self.kind][:, kept]
        if block is not None:
            columns[self.makes] += self._unique(columns)
            tensors[self.makes] = np.concatenate([tensors[self.makes], block], axis=1)
        return Table(columns, tensors)

    def to_nodes(self, graph: Graph, names: Mapping[Kind, str | None], widths: Mapping[Kind, int]) -> dict[Kind, str]:
        """The same on the tensors with these names and widths; one without columns has no name."""
        after = {kind: name for kind, name in names.items() if name is not None}
        source, block = names[self.kind], None
        if self.nodes is not None and source is not None:
            block = self.nodes(graph, _pick(graph, source, self.read, widths[self.kind]))
        kept = self._kept(widths[self.kind])
        if source is not None:
            after.pop(self.kind)
            if kept:
                after[self.kind] = _pick(graph, source, kept, widths[self.kind])
        if block is not None:
            before = after.get(self.makes)
            after[self.makes] = block if before is None else graph.add("Concat", before, block, axis=1)
        return after

    def _kept(self, width: int) -> list[int]:
        return [j for j in range(width) if j not in set(self.drop)]

    def _unique(self, columns: Mapping[Kind, tuple[tuple[str, ColumnType], ...]]) -> tuple[tuple[str, ColumnType], ...]:
        taken = {name for kind in KINDS for name, _ in columns[kind]}
        made = []
        for name, type_ in self.made:
            fresh, number = name, 2
            while fresh in taken:
                fresh, number = f"{name}_{number}", number + 1
            taken.add(fresh)
            made.append((fresh, type_))
        return tuple(made)


def run(nodes: Nodes, block: Array, stage: Stage) -> Array:
    """The block that a stage's nodes make of the one that it reads."""
    graph = Graph()
    graph.add("Identity", nodes(graph, "read"), output="made")
    inputs = [Tensor("read", _TYPES[stage.kind], (-1, block.shape[1]))]
    model = graph.model(inputs, [Tensor("made", _TYPES[stage.makes], (-1, len(stage.made)))])
    return predict(open_session(model.SerializeToString(), 1), {"read": block}, rows_at_once(_BATCH, stage))


def rows_at_once(most: int, *stages: Stage) -> int:
    """So many rows, at most `most`, that the nodes of no stage hold more than _CELLS numbers of them."""
    return max(1, min(most, _CELLS // max([1, *(stage.cells for stage in stages)])))


def _pick(graph: Graph, name: str, columns: list[int] | tuple[int, ...], width: int) -> str:
    if list(columns) == list(range(width)):
        return name
    return graph.add("Gather", name, graph.constant(columns, np.int64), axis=1)


def doubles(graph: Graph, value: npt.ArrayLike) -> str:
    """A constant of FP64."""
    return graph.constant(value, np.float64)
