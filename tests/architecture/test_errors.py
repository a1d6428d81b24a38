"""Every error of the tree has a code of its own, an HTTP status, and a place in the tree's drawing."""

from collections.abc import Iterator

from app.core import errors
from app.core.errors import AimassError
from app.gateway.errors import STATUS


def tree(kind: type[AimassError] = AimassError) -> Iterator[type[AimassError]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


def test_every_error_has_a_status() -> None:
    assert {kind.code for kind in tree()} <= set(STATUS)


def test_every_code_is_given_once() -> None:
    codes = [kind.code for kind in tree()]
    assert sorted(codes) == sorted(set(codes))


def test_every_error_is_in_the_drawing() -> None:
    drawn = errors.__doc__ or ""
    assert [kind.__name__ for kind in tree() if kind.__name__ not in drawn] == []
