"""Query parameters that an operation does not have: a misspelt filter must not pass for none."""

from collections.abc import Iterator

from fastapi import Request
from fastapi.dependencies.models import Dependant

from app.core.errors import FieldError, InvalidInput

_MAX_ERRORS = 100


def check_query(request: Request) -> None:
    """InvalidInput that names each unknown query parameter and the known ones. Parts that are not built take any."""
    route = request.scope["route"]
    if not request.query_params or not route.include_in_schema:
        return
    known = list(dict.fromkeys(_names(route.dependant)))
    msg = f"is not a query parameter here; there {'are' if len(known) > 1 else 'is'} {', '.join(known) or 'none'}"
    unknown = [name for name in dict.fromkeys(request.query_params) if name not in known]
    if unknown:
        errors = [FieldError((name,), msg, "extra_forbidden") for name in unknown[:_MAX_ERRORS]]
        raise InvalidInput(f"{unknown[0]}: {msg}", errors=errors)


def _names(dependant: Dependant) -> Iterator[str]:
    yield from (parameter.alias for parameter in dependant.query_params)
    for below in dependant.dependencies:
        yield from _names(below)
