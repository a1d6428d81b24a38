"""What several resources answer with."""

from datetime import UTC, datetime
from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, BeforeValidator, PlainSerializer

T = TypeVar("T")


def _from_epoch(value: object) -> object:
    return datetime.fromtimestamp(value, UTC) if isinstance(value, (int, float)) else value


# Seconds since the epoch inside, RFC 3339 in UTC outside.
Timestamp = Annotated[
    datetime,
    BeforeValidator(_from_epoch),
    PlainSerializer(lambda t: t.isoformat(timespec="milliseconds").replace("+00:00", "Z"), return_type=str),
]


class PageOf(BaseModel, Generic[T]):
    """One page of a list; `next_cursor` is null on the last one."""

    items: list[T]
    next_cursor: str | None = None
