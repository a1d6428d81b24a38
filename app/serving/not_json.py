"""What is wrong with a body that is not JSON: of numbers that JSON does not have, also what to send instead."""

import json
import re
from contextlib import suppress

from app.core.errors import Malformed

_AT = re.compile(r"\(byte (\d+)\)")
_NOT_FINITE = re.compile(rb"-?(NaN|Infinity)")
_READ = 64 * 1024  # bytes of a body that is read again to name the input


def not_json(body: bytes, error: Exception, text: str, field: str) -> Malformed:
    """The error of a body that msgspec refused with `error`: `text` is its sentence, tensors are in `field`."""
    found = _AT.search(str(error))
    at = int(found[1]) if found else len(body)
    number = _NOT_FINITE.match(body, max(0, at - 1)) or _NOT_FINITE.match(body, at)  # it tells the place after a -
    if number is None:
        return Malformed(f"{text}: {error}")
    name = _name_of(body) if len(body) <= _READ else None
    return Malformed.at(
        field,
        *(() if name is None else (name, "data")),
        msg=f"JSON has no {number.group().decode()} (byte {number.start()}): send null where the model takes missing "
        "values, or binary tensors of the Open Inference Protocol",
    )


def _name_of(body: bytes) -> str | None:
    """The name beside the first `data` that holds such a number."""
    numbers, names = list[str](), list[object]()

    def see(item: dict[str, object]) -> None:
        if numbers and "data" in item:
            names.append(item.get("name"))

    with suppress(ValueError, RecursionError):
        json.loads(body, object_hook=see, parse_constant=numbers.append)
    return names[0] if names and isinstance(names[0], str) else None
