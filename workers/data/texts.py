"""Which columns of a table hold the texts that a model reads."""

from collections.abc import Mapping

import polars as pl

from app.core.errors import InvalidData
from app.core.signature import Column, Tensor
from app.specs.jobs import TrainSpec
from workers.data.tables import Notes, offered

_CODE = r"^[!-~]{1,64}$"  # ASCII without a blank: where every row has another, it names rows


def choose_texts(
    frame: pl.DataFrame, types: Mapping[str, str], spec: TrainSpec, notes: Notes
) -> tuple[tuple[Column, ...], tuple[Tensor, ...]]:
    """Columns of texts, and those that `features.types` calls text; without any, the other columns of words.

    Args:
        frame: the table, cleaned.
        types: column types of the profile.
        spec: with `features` and `target`.
        notes: gets a warning for each column that is left out.

    Raises:
        InvalidData: no column holds texts, or all texts are the same.
    """
    asked = spec.features.types
    names = offered(frame, spec)
    chosen = [name for name in names if name in asked or (types[name] == "text" and not _names_rows(frame[name]))]
    chosen = chosen or [name for name in names if frame[name].dtype == pl.String]
    if not chosen:
        msg = f"no column of text is left for '{spec.family}'; name one in features.types, or use another family"
        raise InvalidData.at("features", msg=msg)
    used = [name for name in chosen if frame[name].n_unique() > 1]
    if not used:
        msg = f"all texts of '{chosen[0]}' are empty or the same, so there is nothing to learn from; use other columns"
        raise InvalidData.at("features", msg=msg)
    for name in names:
        if name in chosen and name not in used:
            notes.warnings.append(f"column '{name}' is left out: it has one value or none")
        elif name not in used:
            notes.warnings.append(
                f"column '{name}' is left out: it is of type {types[name]}, and '{spec.family}' reads texts; "
                "features.types can make it one"
            )
    columns = tuple(Column(name, "text", "text", index, nullable=True) for index, name in enumerate(used))
    return columns, (Tensor("text", "BYTES", (-1, len(used))),)


def _names_rows(column: pl.Series) -> bool:
    present = column.alias("").drop_nulls()  # some names are patterns to polars
    return present.n_unique() == len(present) and bool(present.str.contains(_CODE).all())
