"""What several gateway processes together have made of an endpoint, and of one scrape."""

import pytest

from app.core.resources import Applied, Endpoint
from app.gateway.probes.exposition import merge
from app.gateway.processes import stand

NOW = (100.0, 3)
DONE, FAILED, OLD = Applied(NOW), Applied(NOW, "no memory"), Applied((100.0, 2))


def endpoint(*, loaded: bool = True) -> Endpoint:
    return Endpoint("e", "m", 1, "fp32", {"loaded": loaded}, NOW[1], NOW[0], NOW[0])


@pytest.mark.parametrize(
    ("reports", "state", "error", "counts"),
    [
        ([DONE], "ready", None, (1, 1, 0, 0)),
        ([DONE, DONE], "ready", None, (2, 2, 0, 0)),
        ([DONE, None], "loading", None, (2, 1, 1, 0)),
        ([DONE, OLD], "loading", None, (2, 1, 1, 0)),
        ([DONE, FAILED, OLD], "failed", "no memory", (3, 1, 1, 1)),
        ([DONE, Applied((100.0, 2), "of the revision before")], "loading", None, (2, 1, 1, 0)),
        ([DONE, Applied((100.0, 4))], "ready", None, (2, 2, 0, 0)),  # changed again since
        ([DONE, Applied((200.0, 1))], "ready", None, (2, 2, 0, 0)),  # deleted and made again since
        ([DONE, Applied((90.0, 9))], "loading", None, (2, 1, 1, 0)),  # has the one that was deleted
    ],
)
def test_the_worst_is_the_state(
    reports: list[Applied | None], state: str, error: str | None, counts: tuple[int, ...]
) -> None:
    standing = stand(endpoint(), reports)
    assert (standing.state, standing.error) == (state, error)
    assert tuple(standing.processes[key] for key in ("total", "applied", "loading", "failed")) == counts
    assert standing.applied == (state == "ready")


def test_an_unloaded_endpoint_is_applied_too() -> None:
    assert stand(endpoint(loaded=False), [DONE, DONE]).state == "unloaded"
    assert stand(endpoint(loaded=False), [DONE, OLD]).state == "loading"


def test_expositions_are_one_with_each_head_once() -> None:
    first = '# HELP a Of a\n# TYPE a gauge\na{process="0"} 1.0\n# HELP b Of b\n# TYPE b counter\n'
    second = first.replace("1.0", "2.0").replace('"0"', '"1"') + 'b{process="1"} 3.0\n'
    assert merge([first, second]) == (
        '# HELP a Of a\n# TYPE a gauge\na{process="0"} 1.0\na{process="1"} 2.0\n'
        '# HELP b Of b\n# TYPE b counter\nb{process="1"} 3.0\n'
    )
