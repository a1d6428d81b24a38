"""Users' SQL over one row: DuckDB in memory, without files, network, settings or a second statement."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import duckdb
import polars as pl

from app.core.errors import InvalidSpec
from app.specs.data import ROW_ID

Loc = tuple[str | int, ...]
_CONFIG = {
    "enable_external_access": "false", "autoinstall_known_extensions": "false", "autoload_known_extensions": "false",
    "allow_community_extensions": "false", "memory_limit": "1GB", "max_temp_directory_size": "0GB", "threads": "1",
    "max_expression_depth": "100",
}  # fmt: skip
_QUERY = f"SELECT {ROW_ID} FROM rows WHERE (\n%s\n)"  # noqa: S608 - what takes the place is parsed and checked first
_LONGEST_TREE = 1_000_000  # characters of the serialised syntax tree
# DuckDB copies x for every WHEN, so that some hundred characters of such, nested, would fill the memory.
_SIMPLE_CASE, _SIMPLE_CASES = re.compile(r"\bcase\b(?!\s+when\b)", re.IGNORECASE), 2
_NODES = frozenset(
    {"COMPARISON", "CONJUNCTION", "CONSTANT", "COLUMN_REF", "FUNCTION", "OPERATOR", "CASE", "CAST", "TYPE", "BETWEEN"}
)
# Of one row, cheap, and the same at any time and place.
_OPERATORS = {"+", "-", "*", "/", "//", "%", "**", "^", "||", "~~", "!~~", "~~*", "!~~*"}
_ESCAPES = {"like_escape", "ilike_escape", "not_like_escape", "not_ilike_escape"}  # LIKE … ESCAPE …
_NAMED = {
    "abs", "ceil", "ceiling", "floor", "round", "trunc", "sign", "sqrt", "cbrt", "exp", "ln", "log", "log2", "log10",
    "pow", "power", "mod", "greatest", "least", "isnan", "isinf", "isfinite",
    "lower", "upper", "length", "trim", "ltrim", "rtrim", "substring", "substr", "left", "right", "replace", "concat",
    "contains", "starts_with", "ends_with", "prefix", "suffix", "strpos", "instr", "regexp_matches",
    "regexp_full_match", "nullif", "ifnull", "coalesce",
    "year", "quarter", "month", "day", "week", "dayofweek", "isodow", "dayofyear", "hour", "minute", "second",
    "date_part", "date_trunc", "date_diff", "datediff", "make_date", "strptime", "try_strptime", "strftime", "epoch",
}  # fmt: skip
_FUNCTIONS = _OPERATORS | _ESCAPES | _NAMED


def rows_where(frame: pl.DataFrame, predicate: str, where: Loc) -> pl.DataFrame:
    """The rows for which `predicate` is true, in their order.

    Args:
        frame: with ROW_ID.
        predicate: a boolean SQL expression over the columns; names are quoted as in SQL, "a b".
        where: its place in the spec, for errors.

    Raises:
        InvalidSpec: the predicate is none, names what is not there, uses more than one row, or fails on a value.
    """
    try:
        with duckdb.connect(":memory:", config=dict(_CONFIG)) as session:
            session.register("rows", frame.to_arrow(compat_level=pl.CompatLevel.oldest()))
            session.execute("SET lock_configuration = true")
            _condition(session, predicate, frame.columns, where, "one predicate, such as age >= 18", _NAMED)
            kept = session.execute(_QUERY % predicate).fetchnumpy()[ROW_ID]
    except duckdb.Error as error:
        raise InvalidSpec.at(*where, msg=f"{str(error).splitlines()[0]}; correct the predicate") from None
    return frame.filter(frame[ROW_ID].is_in(pl.Series(kept).implode()))


def expression(text: str, columns: list[str], where: Loc, named: Iterable[str]) -> dict[str, Any]:
    """The checked syntax tree of an SQL expression over columns; nothing of it is run.

    Each COLUMN_REF has the column's own name, in `columns`' case, as its only `column_names`. `named` are the functions
    that an error offers.

    Raises:
        InvalidSpec: it is none, or names what is not there.
    """
    with duckdb.connect(":memory:", config=dict(_CONFIG)) as session:
        tree = _condition(session, text, columns, where, "one expression, such as income / rooms", named)
    for node in _nodes(tree):
        if node["class"] == "COLUMN_REF":
            known = {name.casefold(): name for name in columns}
            node["column_names"] = [known[".".join(node["column_names"]).casefold()]]
    return tree


def _condition(
    session: duckdb.DuckDBPyConnection, predicate: str, columns: list[str], where: Loc, meaning: str,
    named: Iterable[str],
) -> dict[str, Any]:  # fmt: skip
    """The tree of a predicate. The statement must be the one that is meant but for it, and that of plain parts."""
    found, meant = _parsed(session, predicate, where), _parsed(session, "true", where)
    condition = found["node"].pop("where_clause", None)
    meant["node"].pop("where_clause")
    if found != meant:
        raise InvalidSpec.at(*where, msg=f"must be {meaning}; no statement and no clause of one")
    known = [name.casefold() for name in columns]
    for node in _nodes(condition):
        kind, function = node["class"], node.get("function_name", "")
        if kind not in _NODES:
            msg = f"it takes no {kind.lower()}; use columns, values and functions of one row"
            raise InvalidSpec.at(*where, msg=msg)
        if kind == "FUNCTION" and (function not in _FUNCTIONS or node.get("schema") or node.get("catalog")):
            msg = f"there is no function '{function}' here; there are {', '.join(sorted(named))}"
            raise InvalidSpec.at(*where, msg=msg)
        if kind == "COLUMN_REF":
            name = ".".join(node["column_names"])
            if known.count(name.casefold()) != 1:
                msg = f"'{name}' is not one column of the data set; SQL does not tell upper from lower case"
                raise InvalidSpec.at(*where, msg=msg, type="unknown_column")
    return dict(condition)


def _parsed(session: duckdb.DuckDBPyConnection, predicate: str, where: Loc) -> dict[str, Any]:
    """The statement's syntax tree by DuckDB's own parser, without positions in the text."""
    if len(_SIMPLE_CASE.findall(predicate)) > _SIMPLE_CASES:
        msg = f"takes CASE x WHEN {_SIMPLE_CASES} times at most; write CASE WHEN x = … instead"
        raise InvalidSpec.at(*where, msg=msg)
    row = session.execute("SELECT json_serialize_sql(?)", [_QUERY % predicate]).fetchone()
    if row and len(row[0]) > _LONGEST_TREE:
        raise InvalidSpec.at(*where, msg="it is too large; take fewer or shorter conditions, or several steps")
    answer: dict[str, Any] = json.loads(row[0]) if row else {"error": True}
    if answer["error"]:
        told = str(answer.get("error_message", "is no SQL"))
        told = "it is nested too deeply" if "max_expression_depth" in told else told
        raise InvalidSpec.at(*where, msg=f"{told}; correct it")
    if len(answer["statements"]) != 1:
        raise InvalidSpec.at(*where, msg="must be one, not several statements")
    tree: dict[str, Any] = _without_places(answer["statements"][0])
    return tree


def _without_places(tree: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(tree, dict):
        return {key: _without_places(value) for key, value in tree.items() if not key.startswith("query_location")}
    return [_without_places(value) for value in tree] if isinstance(tree, list) else tree


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - any JSON value
    """Every node of an expression."""
    if isinstance(tree, dict):
        if "class" in tree:
            yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)
