"""Parts of dates, from days since 1970-01-01."""

from typing import Any

import numpy as np

from app.core.signature import ColumnType
from app.specs.features import DateParts
from workers.export.graph import Graph
from workers.features.fitting import Fitting
from workers.features.stage import Stage, doubles

Made = tuple[list[Stage], dict[str, Any]]
_INTEGER, _DOUBLE = 7, 11  # ONNX element types
_FIRST, _LAST = -719_162, 2_932_896  # 0001-01-01 and 9999-12-31
_EPOCH = 719_468  # days from 0000-03-01, from which leap years are regular, to 1970-01-01
# What a 32-bit float of today's days is off by at most; without it, some full hours would count as the one before.
_ROUNDING = 2.0**-10


def date_parts(step: DateParts, on: Fitting) -> Made:
    """The arithmetic of the Gregorian calendar; what is no date of the years 1 to 9999 is missing."""
    columns = on.numbers()
    x = on.present(columns)
    outside = ~(np.isnan(x) | ((x >= _FIRST) & (x <= _LAST + 1)))
    if outside.any():
        name = on.names("numeric", columns)[int(outside.any(axis=0).argmax())]
        on.refuse(f"'{name}' has values that are no days since 1970-01-01; name columns of dates", "columns")

    def nodes(graph: Graph, name: str) -> str:
        moment = graph.add("Add", name, doubles(graph, _ROUNDING))
        legal = graph.add(
            "And", graph.add("GreaterOrEqual", moment, doubles(graph, float(_FIRST))),
            graph.add("Less", moment, doubles(graph, float(_LAST + 1))),
        )  # fmt: skip
        moment = graph.add("Where", legal, moment, doubles(graph, 0.0))
        found = _Calendar(graph, moment).parts()
        nan = doubles(graph, np.nan)
        wanted = [graph.add("Where", legal, graph.add("Cast", found[part], to=_DOUBLE), nan) for part in step.parts]
        return wanted[0] if len(wanted) == 1 else graph.add("Concat", *wanted, axis=1)

    names = on.names("numeric", columns)
    made: tuple[tuple[str, ColumnType], ...] = tuple((f"{name}.{p}", "integer") for p in step.parts for name in names)
    drop = () if step.keep else columns
    return [Stage("numeric", columns, drop, made, "numeric", nodes)], {"added": len(made)}


class _Calendar:
    """Integer arithmetic on days (Hinnant, "chrono-compatible low-level date algorithms", 2013)."""

    def __init__(self, graph: Graph, moment: str) -> None:
        self.graph, self.moment = graph, moment

    def _do(self, op: str, left: str, right: int | str) -> str:
        return self.graph.add(op, left, right if isinstance(right, str) else self.graph.constant(right, np.int64))

    def _sum(self, first: str, *others: tuple[int, str]) -> str:
        for sign, other in others:
            first = self._do("Add" if sign > 0 else "Sub", first, other)
        return first

    def parts(self) -> dict[str, str]:
        """Each part's integers, by name; what is not asked for is not part of the graph that runs."""
        whole = self.graph.add("Floor", self.moment)
        days = self.graph.add("Cast", whole, to=_INTEGER)
        of_day = self.graph.add("Sub", self.moment, whole)
        hour = self.graph.add("Floor", self.graph.add("Mul", of_day, doubles(self.graph, 24.0)))
        since = self._do("Add", days, _EPOCH)
        era = self._do("Div", since, 146_097)
        of_era = self._do("Sub", since, self._do("Mul", era, 146_097))
        leaps = ((-1, self._do("Div", of_era, 1460)), (1, self._do("Div", of_era, 36_524)),
                 (-1, self._do("Div", of_era, 146_096)))  # fmt: skip
        year_of_era = self._do("Div", self._sum(of_era, *leaps), 365)
        before = self._sum(
            self._do("Mul", year_of_era, 365), (1, self._do("Div", year_of_era, 4)),
            (-1, self._do("Div", year_of_era, 100)),
        )  # fmt: skip
        from_march = self._do("Sub", of_era, before)  # days since 1 March
        fifth = self._do("Div", self._do("Add", self._do("Mul", from_march, 5), 2), 153)  # months since March
        start = self._do("Div", self._do("Add", self._do("Mul", fifth, 153), 2), 5)
        month = self._do("Add", self._do("Mod", self._do("Add", fifth, 2), 12), 1)
        year = self._do("Add", year_of_era, self._do("Mul", era, 400))
        late = self.graph.add("Cast", self._do("LessOrEqual", month, 2), to=_INTEGER)  # January and February
        year = self._do("Add", year, late)
        return {
            "year": year,
            "month": month,
            "day": self._do("Add", self._do("Sub", from_march, start), 1),
            "quarter": self._do("Div", self._do("Add", month, 2), 3),
            "weekday": self._do("Mod", self._do("Add", days, 3 + 7 * 200_000), 7),
            "day_of_year": self._day_of_year(from_march, year, late),
            "hour": hour,
        }

    def _day_of_year(self, from_march: str, year: str, late: str) -> str:
        """From 1: January begins 306 days after 1 March, and March 59 or 60 days after the year."""
        leap = self._do("Sub", self._divides(year, 4), self._do("Sub", self._divides(year, 100),
                        self._divides(year, 400)))  # fmt: skip
        spring = self._do("Add", self._do("Add", from_march, 60), leap)
        winter = self._do("Sub", from_march, 305)
        return self.graph.add("Where", self.graph.add("Cast", late, to=9), winter, spring)

    def _divides(self, year: str, by: int) -> str:
        return self.graph.add("Cast", self._do("Equal", self._do("Mod", year, by), 0), to=_INTEGER)
