"""What a person is told of a search: the picture, the page, and a line for each recipe."""

import itertools
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from workers.compression import space
from workers.compression.candidate import Candidate, Notebook
from workers.compression.search import Search
from workers.evaluation import plots
from workers.evaluation.page import compression_page
from workers.evaluation.steps import in_words


def told(speed_up: float, loss: float, name: str | None = None, **more: Any) -> dict[str, Any]:
    """A candidate as a report has it."""
    measured = {"metric": "rmse", "measured": loss, "at_most": loss, "allowed": 0.3} | more
    return {
        "recipe": [{"step": "first_trees", "share": speed_up}], "failed": None, "variant": name, "smaller": 2.0,
        "speed_up": speed_up, "quicker": 1.0, "loss": measured, "state": "accepted" if name else "rejected",
        "reason": None,
    }  # fmt: skip


def report(*candidates: dict[str, Any], **more: Any) -> dict[str, Any]:
    budget = {"max_metric_drop": 0.0, "max_error_increase": 0.3, "objective": "speed"}
    return {"candidates": list(candidates), "budget": budget} | more


def drawn(data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The picture's axes, as they were drawn."""
    kept = []

    def plot(axes: Any, given: Any, plot: Any = plots._compression) -> None:
        kept.append(axes)
        plot(axes, given)

    monkeypatch.setattr(plots, "_compression", plot)
    found = plots.draw({"curves": {}, "compression": data})
    assert sorted(found) == ["compression.png", "compression.svg"]
    assert b"$" not in found["compression.svg"]
    return kept[-1]


@pytest.mark.parametrize(
    ("speeds", "shown"),
    [
        ((1.0, 1.0), ["0.9", "1", "1.1"]),
        ((0.8, 1.4, 3.1), ["0.8", "1", "1.2", "1.5", "2", "3"]),
        ((0.97, 2.0, 20.0), ["1", "2", "5", "10", "20"]),
        ((0.02, 7.0, 4000.0), ["0.1", "1", "10", "100", "1000"]),
        ((1e-4, 1e4), ["0.0001", "0.01", "1", "100", "10000"]),
    ],
)
def test_the_ticks_of_the_picture_are_plain_numbers_that_do_not_overlap(
    speeds: tuple[float, ...], shown: list[str], monkeypatch: pytest.MonkeyPatch
):
    axes = drawn(report(*(told(speed, 0.1, "int8") for speed in speeds)), monkeypatch)
    assert [label.get_text() for label in axes.get_xticklabels(which="both")] == shown
    assert isinstance(axes.figure, Figure)
    renderer = FigureCanvasAgg(axes.figure).get_renderer()
    boxes = [label.get_window_extent(renderer) for label in axes.get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_the_line_of_the_budget_is_at_what_was_allowed(monkeypatch: pytest.MonkeyPatch):
    axes = drawn(report(told(1.4, 0.12, "optimized"), told(2.0, 0.4), part="test"), monkeypatch)
    lines = {line.get_label(): line.get_ydata()[0] for line in axes.lines if line.get_linestyle() != "None"}
    assert lines["budget"] == 0.3
    assert axes.get_ylabel() == "relative loss of rmse on test rows"


def test_each_metric_has_its_line_if_they_are_allowed_different_losses(monkeypatch: pytest.MonkeyPatch):
    losses = [{"metric": "roc_auc", "allowed": 0.004}, {"metric": "accuracy", "allowed": 0.01}]
    axes = drawn(report(*(told(2.0, 0.002, "int8", **loss) for loss in losses)), monkeypatch)
    lines = {line.get_label(): line.get_ydata()[0] for line in axes.lines}
    assert (lines["budget of roc_auc"], lines["budget of accuracy"]) == (0.004, 0.01)
    assert axes.get_ylabel() == "loss on the rows that decide"


def test_a_search_of_which_nothing_could_be_made_has_a_picture_too(monkeypatch: pytest.MonkeyPatch):
    axes = drawn(report(told(0.0, 0.0) | {"failed": "no", "loss": {}}), monkeypatch)
    assert [text.get_text() for text in axes.texts] == ["nothing was measured"]


def test_the_page_names_the_rows_that_decided_and_what_differs():
    quantized = [told(2.0, 0.1, "int8") | {"recipe": [step]} for step in (space.STATIC, space.WEIGHTS_ALONE)]
    more = {"winner": "int8", "host": "here", "full": {"bytes": 9}, "main_metric": "rmse", "variants": []}
    page = compression_page(report(*quantized, **more, part="test"), {})
    assert "Losses are of test rows" in page
    assert "quantize static (Conv, Relu, MaxPool; uint8, min-max)" in page
    assert "quantize static (MatMul, Gemm; uint8, min-max, float between)" in page
    assert "Losses are of the rows that decide" in compression_page(report(**more), {})


def test_recipes_that_differ_are_told_by_other_words():
    every = [*space._PRECISIONS.values(), *space._PRUNED.values(), *space._STORAGES.values()]
    every += [{"step": "fuse", "fast_gelu": fast} for fast in (True, False)]
    every += [{"step": "drop_layers", "keep": 2, "table_rank": rank} for rank in (None, 16)]
    every += [{**space.STATIC, "keep_float": list("abcde"[:count])} for count in (1, 2, 4, 5)]
    lines = [in_words([step]) for step in every]
    assert len(set(lines)) == len(lines)
    assert not any(word in line for line in lines for word in ("True", "False", "None", "[", "_gelu"))
    assert max(map(len, lines)) < 100


def test_a_line_says_what_differs_briefly():
    recipe = [{"step": "fuse", "fast_gelu": True}, {**space.STATIC, "keep_float": list("abcdef")}]
    assert in_words(recipe) == (
        "fuse (fast gelu), quantize static (Conv, Relu, MaxPool; uint8, min-max; keep float: a, b, c and 3 more)"
    )
    assert in_words([{"step": "quantize", "method": "weights", "bits": 8}, {"step": "byte_weights"}]) == (
        "quantize weights (bits 8), byte_weights"
    )
    assert in_words([{"step": "low_rank", "energy": 0.9}]) == "low_rank (energy 0.9)"


def test_the_log_of_a_search_tells_recipes_apart():
    lines: list[str] = []

    class Job:
        progress = staticmethod(lambda *_: None)
        log = staticmethod(lines.append)

    search = Search.__new__(Search)
    search.job, search.notebook = Job(), Notebook(None, "here", "0")  # type: ignore[assignment] # what it tells
    search.limit_s, search.span, search.given = 10.0, (0.0, 1.0), ()
    for step in (space.STATIC, space.WEIGHTS_ALONE):
        search._tell(Candidate([step], 1, smaller=2.0, speed_up=3.0))
    assert [line.partition(": ")[0] for line in lines] == [
        "tried quantize static (Conv, Relu, MaxPool; uint8, min-max)",
        "tried quantize static (MatMul, Gemm; uint8, min-max, float between)",
    ]
