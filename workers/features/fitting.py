"""What a step is fitted on, and how it says that a column does not suit it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from app.core.errors import InvalidData, InvalidSpec
from app.core.signature import ColumnType
from app.specs.features import FeatureStep, unsuited
from workers.features.stage import Kind, Nodes, Stage, Table
from workers.learning import Array, LearningData

MOST_COLUMNS = 2000  # that one step may add
_NUMBERS: frozenset[ColumnType] = frozenset({"number", "integer"})


@dataclass(frozen=True, slots=True)
class Fitting:
    """Training rows as the steps before have left them, and the place of the step in the spec."""

    table: Table
    data: LearningData
    where: tuple[str | int, ...]
    step: FeatureStep

    @property
    def y(self) -> Array:
        """Class indices, or standardised values: [N]."""
        return self.data.train.y

    def names(self, kind: Kind, columns: Sequence[int]) -> list[str]:
        """Of columns of a tensor."""
        names = self.table.names(kind)
        return [names[j] for j in columns]

    def find(self, kind: Kind, loc: tuple[str | int, ...], name: str) -> int:
        """A named column's index. InvalidSpec if the tensor has no such column."""
        names = self.table.names(kind)
        if name not in names:
            msg = unsuited(name, self.step.step, self.step.reads_at(loc))
            raise InvalidSpec.at(*self.where, *loc, msg=msg, type="unsuited_column")
        return names.index(name)

    def numbers(self) -> tuple[int, ...]:
        """The named columns of numbers; else all but booleans. InvalidSpec if there is none."""
        if self.step.columns is not None:
            return self._named("numeric")
        found = tuple(j for j, (_, type_) in enumerate(self.table.columns["numeric"]) if type_ in _NUMBERS)
        return found or self._nothing()

    def categories(self) -> tuple[int, ...]:
        """The named columns of categories; else all. InvalidSpec if there is none."""
        if self.step.columns is not None:
            return self._named("categorical")
        return tuple(range(len(self.table.columns["categorical"]))) or self._nothing()

    def to_fill(self, kind: Kind, gaps: Array) -> tuple[int, ...]:
        """Those of the named columns that this tensor has, else those with `gaps`, booleans [N, columns]."""
        if self.step.columns is None:
            return tuple(np.flatnonzero(gaps.any(axis=0)).tolist())
        names = self.table.names(kind)
        return tuple(names.index(name) for name in dict.fromkeys(self.step.columns) if name in names)

    def _named(self, kind: Kind) -> tuple[int, ...]:
        found = (self.find(kind, ("columns", j), name) for j, name in enumerate(self.step.columns or []))
        return tuple(dict.fromkeys(found))

    def _nothing(self) -> NoReturn:
        msg = f"no used column suits {self.step.step}; leave the step out, or set features.types"
        raise InvalidSpec.at(*self.where, msg=msg)

    def refuse(self, msg: str, *loc: str | int) -> NoReturn:
        """InvalidData at the step, or a field of it."""
        raise InvalidData.at(*self.where, *loc, msg=msg)

    def block(self, kind: Kind, columns: Sequence[int]) -> Array:
        """[N, columns] of training rows."""
        return self.table.tensors[kind][:, list(columns)]

    def present(self, columns: Sequence[int]) -> Array:
        """[N, columns] of numbers. InvalidData for one that has no value in training rows."""
        x = self.block("numeric", columns)
        for name, empty in zip(self.names("numeric", columns), np.atleast_1d(np.isnan(x).all(axis=0)), strict=True):
            if empty:
                self.refuse(f"'{name}' has no value in the training rows; name other columns, or drop it")
        return x

    def in_place(self, kind: Kind, columns: tuple[int, ...], nodes: Nodes, type_: ColumnType | None = None) -> Stage:
        """A stage whose columns take the places of those that it reads, under their names."""
        before = [self.table.columns[kind][j] for j in columns]
        made = tuple((name, type_ or old) for name, old in before)
        makes: Kind = "categorical" if made[0][1] == "category" else "numeric"
        return Stage(kind, columns, columns, made, makes, nodes)

    def check_count(self, count: int) -> None:
        """InvalidData for more new columns than a model is good for."""
        if count > MOST_COLUMNS:
            self.refuse(f"it would add {count} columns, at most {MOST_COLUMNS}; name fewer columns")
