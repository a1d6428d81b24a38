"""A column by an SQL expression of one row: the syntax tree that DuckDB's parser gives, as nodes of the graph.

All numbers are FP64 and NaN is NULL. A truth value is 1, 0 or NaN, so that AND, OR and NOT are those of three-valued
logic. What is no finite number (a division by zero, the logarithm of a negative number, an overflow) is NULL at once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any, Literal, NoReturn

import numpy as np

from app.core.errors import InvalidSpec
from app.core.signature import ColumnType
from app.specs.features import Derive
from workers.data.sql import expression
from workers.export.graph import Graph
from workers.features import sql_nodes as nodes
from workers.features.fitting import Fitting
from workers.features.stage import Stage, doubles

Made = tuple[list[Stage], dict[str, Any]]
Tree = Mapping[str, Any]
Type = Literal["number", "truth", "text", "null"]
_DOUBLE = 11  # ONNX element type
_TESTS = {
    "COMPARE_EQUAL": "Equal", "COMPARE_LESSTHAN": "Less", "COMPARE_GREATERTHAN": "Greater",
    "COMPARE_LESSTHANOREQUALTO": "LessOrEqual", "COMPARE_GREATERTHANOREQUALTO": "GreaterOrEqual",
}  # fmt: skip
_ARITHMETIC = {"+": "Add", "-": "Sub", "*": "Mul", "/": "Div", "**": "Pow", "^": "Pow", "pow": "Pow", "power": "Pow"}
_OF_ONE = {
    "abs": "Abs", "ln": "Log", "exp": "Exp", "sqrt": "Sqrt", "floor": "Floor", "ceil": "Ceil", "ceiling": "Ceil",
    "-": "Neg",
}  # fmt: skip
_OF_SEVERAL = {"least": "Min", "greatest": "Max"}
_NAMED = sorted(name for name in (*_ARITHMETIC, *_OF_ONE, *_OF_SEVERAL, "round", "nullif") if name.isalpha())
_TAKES = "there are + - * / **, comparisons, AND, OR, NOT, IN, BETWEEN, IS NULL and CASE, and functions of numbers"

Emit = Callable[[Graph, str], str]  # from the name of the block that is read, [N, columns], to that of [N, 1] or [1, 1]


@dataclass(frozen=True, slots=True)
class _Value:
    """Part of the expression: its type, and the nodes that compute it. Of a text, its column and value instead."""

    type: Type
    emit: Emit
    column: int | None = None
    text: str | None = None


def derive(step: Derive, on: Fitting) -> Made:
    """Comparisons of categories become columns of truth values first, which the expression reads like numbers."""
    where = (*on.where, "expression")
    known = [*on.table.names("numeric"), *on.table.names("categorical")]
    compiler = _Compiler(on, where)
    value = compiler.value(expression(step.expression, known, where, [*_NAMED, "coalesce"]))
    if value.type not in {"number", "truth"}:
        compiler.refuse("is text; it has to be a number, or true or false: use CASE WHEN")
    if not (compiler.numbers or compiler.tests):
        compiler.refuse("names no column")
    width, temporary = len(on.table.columns["numeric"]), tuple(range(len(compiler.tests)))
    stages = []
    if compiler.tests:
        columns = tuple(dict.fromkeys(test.column for test in compiler.tests))
        made: tuple[tuple[str, ColumnType], ...] = tuple((f"{step.name} {i}", "boolean") for i in temporary)
        stages.append(Stage("categorical", columns, (), made, "numeric", _tested(compiler.tests, columns)))
    temporary = tuple(width + i for i in temporary)
    read = (*compiler.numbers, *temporary)
    type_: ColumnType = "number" if value.type == "number" else "boolean"
    stages.append(Stage("numeric", read, temporary, ((step.name, type_),), "numeric", value.emit))
    return stages, {"missing": _missing(stages, on, compiler)}


def _missing(stages: Sequence[Stage], on: Fitting, compiler: "_Compiler") -> int:
    """How many training rows have no value. InvalidSpec if none has one."""
    made = reduce(lambda table, stage: stage.apply(table), stages, on.table).tensors["numeric"][:, -1]
    if np.isnan(made).all():
        compiler.refuse("is missing in every training row")
    return int(np.isnan(made).sum())


@dataclass(frozen=True, slots=True)
class _Test:
    """Whether a column of categories is one of these values, or missing."""

    column: int
    values: tuple[str, ...] | None


def _tested(tests: Sequence[_Test], columns: tuple[int, ...]) -> Callable[[Graph, str], str]:
    def one(graph: Graph, block: str, test: _Test) -> str:
        cell = graph.add("Gather", block, graph.constant([columns.index(test.column)], np.int64), axis=1)
        missing = nodes.is_text(graph, cell, "")
        if test.values is None:
            return graph.add("Cast", missing, to=_DOUBLE)
        found = reduce(lambda a, b: graph.add("Or", a, b), [nodes.is_text(graph, cell, value) for value in test.values])
        return graph.add("Where", missing, doubles(graph, np.nan), graph.add("Cast", found, to=_DOUBLE))

    def every(graph: Graph, block: str) -> str:
        found = [one(graph, block, test) for test in tests]
        return found[0] if len(found) == 1 else graph.add("Concat", *found, axis=1)

    return every


@dataclass(slots=True)
class _Compiler:
    """Walks a tree once; collects the columns of numbers that it reads and the tests of categories that it needs.

    The block that is read has the numbers first, in `numbers`' order, and then the tests.
    """

    on: Fitting
    where: tuple[str | int, ...]
    numbers: list[int] = field(default_factory=list)
    tests: list[_Test] = field(default_factory=list)

    def refuse(self, msg: str) -> NoReturn:
        """InvalidSpec at the expression."""
        raise InvalidSpec.at(*self.where, msg=msg)

    def value(self, tree: Tree) -> _Value:
        """Any part."""
        return {
            "COLUMN_REF": self._column, "CONSTANT": self._constant, "FUNCTION": self._function,
            "COMPARISON": self._comparison, "CONJUNCTION": self._conjunction, "BETWEEN": self._between,
            "CASE": self._case, "OPERATOR": self._operator,
        }.get(tree["class"], self._unknown)(tree)  # fmt: skip

    def _unknown(self, tree: Tree) -> _Value:
        self.refuse(f"takes no {str(tree.get('type', tree['class'])).lower()}; {_TAKES}")

    def typed(self, tree: Tree, wanted: Literal["number", "truth"]) -> Emit:
        """The nodes of a part that must be of this type; NULL is of any."""
        found = self.value(tree)
        if found.type not in {wanted, "null"}:
            words = {"number": "a number", "truth": "true or false", "text": "text"}
            self.refuse(
                f"has {words[found.type]} where {words[wanted]} has to be; "
                + ("use CASE WHEN … THEN 1 ELSE 0 END" if wanted == "number" else "compare it, such as x > 0")
            )
        return found.emit

    def _column(self, tree: Tree) -> _Value:
        name = tree["column_names"][0]
        if name in self.on.table.names("categorical"):
            return _Value("text", _no_nodes, column=self.on.table.names("categorical").index(name))
        index = self.on.table.names("numeric").index(name)
        if index not in self.numbers:
            self.numbers.append(index)
        place, truth = self.numbers.index(index), self.on.table.columns["numeric"][index][1] == "boolean"
        return _Value("truth" if truth else "number", _read(lambda: place))

    def _constant(self, tree: Tree) -> _Value:
        kind, text = tree["literal"]["kind"], tree["literal"]["text"]
        if kind == "STRING":
            return _Value("text", _no_nodes, text=text)
        if kind == "NULL_LITERAL":
            return _Value("null", _number(np.nan))
        if kind == "BOOLEAN":
            return _Value("truth", _number(float(text == "true")))
        number = float(text.replace("_", "")) if kind in {"INTEGER", "NUMERIC"} else np.inf
        if not np.isfinite(number):
            self.refuse(f"has the value {text or kind.lower()}, which is no number of 64 bits")
        return _Value("number", _number(number))

    def _function(self, tree: Tree) -> _Value:
        name = tree["function_name"]
        arguments = [self.typed(argument["expression"], "number") for argument in tree["arguments"]]
        if len(arguments) == 1 and name in _OF_ONE:
            return _Value("number", _lift(partial(nodes.arithmetic, op=_OF_ONE[name]), *arguments))
        if len(arguments) == 1 and name == "round":
            return _Value("number", _lift(nodes.rounded, *arguments))
        if len(arguments) == 2 and name in _ARITHMETIC:  # noqa: PLR2004 - both sides
            return _Value("number", _lift(partial(nodes.arithmetic, op=_ARITHMETIC[name]), *arguments))
        if len(arguments) == 2 and name == "nullif":  # noqa: PLR2004 - a value and what counts as NULL
            return _Value("number", _lift(nodes.null_if, *arguments))
        if not arguments or name not in _OF_SEVERAL:
            self.refuse(f"takes no {name} of {len(arguments)}; there are + - * / ** and {', '.join(_NAMED)}")
        extreme = partial(nodes.extreme, op=_OF_SEVERAL[name])
        return _Value("number", reduce(partial(_lift, extreme), arguments))

    def _comparison(self, tree: Tree) -> _Value:
        kind, sides = tree["type"], [self.value(tree[side]) for side in ("left", "right")]
        negated, op = kind == "COMPARE_NOTEQUAL", _TESTS.get("COMPARE_EQUAL" if kind == "COMPARE_NOTEQUAL" else kind)
        if op is None:
            self.refuse(f"takes no {kind.lower()}; use = <> < <= > >=")
        if any(side.type == "text" for side in sides):
            if op != "Equal":
                self.refuse("compares categories by = <> and IN only")
            found = self._text_test(sides[0], sides[1:]) if sides[0].column is not None else None
            found = found or self._text_test(sides[1], sides[:1])
        else:
            found = self._tested(op, sides[0], sides[1])
        return _Value("truth", _lift(nodes.negation, found) if negated else found)

    def _tested(self, op: str, left: _Value, right: _Value) -> Emit:
        if len({left.type, right.type} - {"null"}) > 1:
            self.refuse("compares a number with true or false; use the column alone, or NOT")
        if "text" in {left.type, right.type}:
            self.refuse("compares text otherwise than a category with values in quotes")
        return _lift(partial(nodes.test, op=op), left.emit, right.emit)

    def _text_test(self, cell: _Value, values: Sequence[_Value]) -> Emit:
        """A category against values in quotes. The test becomes a column, which stands behind the numbers."""
        texts = [value.text for value in values if value.text is not None]
        if cell.column is None or len(texts) < len(values):
            self.refuse("compares a category with values in quotes only, such as city = 'Oslo'")
        if "" in texts:
            self.refuse("compares with the empty text, which counts as missing; use IS NULL")
        return self._test_column(_Test(cell.column, tuple(texts)))

    def _test_column(self, test: _Test) -> Emit:
        if test not in self.tests:
            self.tests.append(test)
        return _read(lambda: len(self.numbers) + self.tests.index(test))

    def _conjunction(self, tree: Tree) -> _Value:
        parts = [self.typed(part, "truth") for part in tree["children"]]
        join = nodes.both if tree["type"] == "CONJUNCTION_AND" else nodes.either
        return _Value("truth", reduce(partial(_lift, join), parts))

    def _between(self, tree: Tree) -> _Value:
        value, low, high = (self.typed(tree[part], "number") for part in ("input", "lower", "upper"))
        return _Value("truth", _lift(nodes.between, value, low, high))

    def _case(self, tree: Tree) -> _Value:
        conditions = [self.typed(check["when_expr"], "truth") for check in tree["case_checks"]]
        results = [self.value(check["then_expr"]) for check in tree["case_checks"]]
        last = self.value(tree["else_expr"])
        type_ = self._common("CASE", [*results, last])
        emit = last.emit
        for condition, result in reversed(list(zip(conditions, results, strict=True))):
            emit = _lift(nodes.choose, condition, result.emit, emit)
        return _Value(type_, emit)

    def _operator(self, tree: Tree) -> _Value:
        """Those that the parser does not take for functions."""
        kind, children = tree["type"].removeprefix("OPERATOR_"), tree["children"]
        if kind == "NOT":
            return _Value("truth", _lift(nodes.negation, self.typed(children[0], "truth")))
        parts = [self.value(child) for child in children]
        emits = [part.emit for part in parts]
        if kind in {"IS_NULL", "IS_NOT_NULL"}:
            column = parts[0].column
            if column is None and parts[0].type == "text":
                self.refuse("asks whether a text constant is null; name a column")
            found = _lift(nodes.is_null, *emits) if column is None else self._test_column(_Test(column, None))
            return _Value("truth", found if kind == "IS_NULL" else _lift(nodes.negation, found))
        if kind == "COALESCE":
            return _Value(self._common(kind, parts), reduce(partial(_lift, nodes.coalesce), emits))
        if kind not in {"COMPARE_IN", "COMPARE_NOT_IN"}:
            self.refuse(f"takes no {kind.lower()}; {_TAKES}")
        if parts[0].type == "text":
            found = self._text_test(parts[0], parts[1:])
        else:
            tests = [self._tested("Equal", parts[0], part) for part in parts[1:]]
            found = reduce(partial(_lift, nodes.either), tests)
        return _Value("truth", found if kind == "COMPARE_IN" else _lift(nodes.negation, found))

    def _common(self, what: str, parts: Sequence[_Value]) -> Type:
        types = {part.type for part in parts} - {"null"}
        if len(types) > 1 or "text" in types:
            self.refuse(f"{what} has to give numbers alone, or true and false alone")
        return types.pop() if types else "null"


def _no_nodes(_graph: Graph, _block: str) -> str:
    raise AssertionError("a text is compared, not computed")


def _lift(make: Callable[..., str], *parts: Emit) -> Emit:
    """Nodes on the results of parts; each part is made once."""
    return lambda graph, block: make(graph, *[part(graph, block) for part in parts])


def _number(value: float) -> Emit:
    return lambda graph, _: doubles(graph, [[value]])


def _read(place: Callable[[], int]) -> Emit:
    """A column of the block; its place is known once the whole expression was walked."""
    return lambda graph, block: graph.add("Gather", block, graph.constant([place()], np.int64), axis=1)
