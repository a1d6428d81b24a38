"""Plots as SVG and PNG. The same numbers give the same bytes; names are drawn as they are, whatever they hold."""

import io
import itertools
import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from workers.evaluation.metrics import LOWER_IS_BETTER

_STYLE: Any = {  # its keys are checked by matplotlib
    "svg.hashsalt": "aimass", "svg.fonttype": "none", "text.parse_math": False, "font.size": 8, "lines.linewidth": 1.2,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3,
    "savefig.dpi": 150, "legend.frameon": False, "legend.fontsize": 7,
}  # fmt: skip
_SIZE = (4.4, 3.4)  # inches; a PNG is 660 by 510 pixels, some tens of kilobytes
_AXES = (0.14, 0.14, 0.82, 0.76)  # left, bottom, width, height; shares of the figure
_TICKS = 5
_LOG_TICKS, _LEAST_TICKS = 7, 3
_BESIDE = 1.15  # times as far as its points, at least, an axis of ratios goes
_SLOWEST = 1e-4  # ratio that has a place there
_NAME = 24
_NUMBERED = 12  # classes whose confusion matrix has numbers in its cells
# What would differ between times and releases is left out.
_FORMATS: dict[str, dict[str, None]] = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
_Raw = Mapping[str, Any]
_Place = Literal["upper left", "lower left", "lower right", "best"]


def draw(evaluation: _Raw) -> dict[str, bytes]:
    """Files by name, `roc.svg` and `roc.png` and so on, for what `evaluation.json` holds."""
    curves = evaluation["curves"]
    found: dict[str, bytes] = {}
    with rc_context(), warnings.catch_warnings():
        rcdefaults()  # whatever the host's own settings are
        rcParams.update(_STYLE)
        warnings.simplefilter("ignore")  # of letters that the font lacks: who shows the file has another
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
        for name, (title, plot) in _PLOTS.items():
            if curves.get(name):
                found |= _files(name, title, plot, curves[name])
        if evaluation.get("training"):
            found |= _files("training", "Training", _training, evaluation["training"])
        if evaluation.get("learning_curve"):
            title = f"Learning curve: {evaluation['main_metric']}"
            found |= _files("learning_curve", title, _learning, evaluation["learning_curve"])
        if evaluation.get("compression"):
            found |= _files("compression", "Compression", _compression, evaluation["compression"])
    return found


def _files(name: str, title: str, plot: Callable[[Axes, Any], None], data: Any) -> dict[str, bytes]:  # noqa: ANN401 - what the plot takes
    figure = Figure(figsize=_SIZE)
    axes = figure.add_axes(_AXES)
    figure.text(_AXES[0], 0.94, title, fontsize=9)  # an axes' own title looks for its place, which takes time
    axes.locator_params(nbins=_TICKS)
    plot(axes, data)
    found = {}
    for kind, metadata in _FORMATS.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata=metadata)
        found[f"{name}.{kind}"] = buffer.getvalue()
    return found


def _roc(axes: Axes, data: Sequence[_Raw]) -> None:
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=":")
    for curve in data:
        axes.plot(curve["false_positive_rate"], curve["true_positive_rate"], label=_clean(curve["class"]))
    _label(axes, "false positive rate", "true positive rate", "lower right")


def _precision_recall(axes: Axes, data: Sequence[_Raw]) -> None:
    for curve in data:
        axes.step(curve["recall"], curve["precision"], where="pre", label=_clean(curve["class"]))
    axes.set_ylim(0, 1.02)
    _label(axes, "recall", "precision", "lower left")


def _calibration(axes: Axes, data: _Raw) -> None:
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=":")
    rows = np.asarray(data["rows"], float)
    axes.plot(data["told"], data["happened"], color="C0")
    axes.scatter(data["told"], data["happened"], s=6 + 60 * rows / rows.max(), color="C0", label=_clean(data["of"]))
    _label(axes, "probability that the model gives", "share of rows that are", "upper left")


def _gains(axes: Axes, data: _Raw) -> None:
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=":")
    axes.plot([0, *data["share"]], [0, *data["found"]], label=_clean(data["class"]))
    _label(axes, "share of rows, highest score first", "share of the class that they hold", "lower right")


def _confusion(axes: Axes, data: _Raw) -> None:
    if "counts" not in data:
        names = [f"{_clean(m['true'])} as {_clean(m['predicted'])}" for m in data["mistakes"]]
        axes.barh(range(len(names)), [m["rows"] for m in data["mistakes"]])
        axes.set_yticks(range(len(names)), names, fontsize=5)
        axes.invert_yaxis()
        axes.set_xlabel("rows that are mistaken")
        return
    counts, names = np.asarray(data["counts"], float), [_clean(name) for name in data["classes"]]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1)
    axes.invert_yaxis()
    axes.grid(visible=False)
    middles = np.arange(len(names)) + 0.5
    small = 7 if len(names) <= _NUMBERED else 4
    axes.set_xticks(middles, names, fontsize=small, rotation=45 if len(names) > 3 else 0)  # noqa: PLR2004 - fit in a row
    axes.set_yticks(middles, names, fontsize=small, rotation=90 if len(names) <= 3 else 0, va="center")  # noqa: PLR2004
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(names) <= _NUMBERED:
        for i, row in enumerate(data["counts"]):
            for j, count in enumerate(row):
                color = "white" if shares[i, j] > 0.5 else "black"  # noqa: PLR2004 - legible on its cell
                axes.text(j + 0.5, i + 0.5, f"{count}", ha="center", va="center", fontsize=small, color=color)


def _residuals(axes: Axes, data: _Raw) -> None:
    axes.axhline(0, color="0.6", linestyle=":")
    axes.scatter(data["predicted"], data["residual"], s=5, alpha=0.6)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true minus predicted")


def _training(axes: Axes, data: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Loss by epoch or round; what is told by optimizer step has an axis of its own."""
    steps = {name: max(step for step, _ in points) for name, points in data.items()}
    other: Axes | None = None
    for at, (name, points) in enumerate(data.items()):
        host = axes
        if steps[name] > 2 * min(steps.values()):
            other = other or axes.twiny()
            other.grid(visible=False)
            host = other
        host.plot(*zip(*points, strict=True), label=_clean(name.replace("_", " ")), color=f"C{at}")
    axes.set_xlabel("epoch or round")
    axes.figure.legend(loc="upper right", fontsize=7)


def _learning(axes: Axes, data: Sequence[_Raw]) -> None:
    for part in ("train", "test"):
        points = [(point["rows"], point[part]) for point in data if point[part] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=f"{part} rows")
    _label(axes, "training rows", "", "best")


def _compression(axes: Axes, data: _Raw) -> None:
    """Every candidate that was measured: speed across, loss up, area by size; kept ones have their name."""
    measured = [one for one in data["candidates"] if not one["failed"]]
    if not measured:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "nothing was measured", ha="center", transform=axes.transAxes)
        return
    speeds = [1.0, *(max(one["speed_up"], _SLOWEST) for one in measured)]  # 1: the full model
    beside = max(_BESIDE, (max(speeds) / min(speeds)) ** 0.05)
    low, high = min(speeds) / beside, max(speeds) * beside
    axes.axvline(1.0, color="0.6", linestyle=":")
    for one in measured:
        _candidate(axes, one, math.sqrt(low * high))
    names = _budget(axes, [one["loss"] for one in measured])
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    _plain_ticks(axes, low, high)
    loss = f"{'relative ' if names[0] in LOWER_IS_BETTER else ''}loss of {names[0]}" if len(names) == 1 else "loss"
    rows = f"{data['part']} rows" if data.get("part") else "the rows that decide"
    _label(axes, "times the full model's rows a second", f"{loss} on {rows}", "best")


def _candidate(axes: Axes, one: _Raw, middle: float) -> None:
    """A point; the name of a kept one stands towards the middle, so that it does not leave the picture."""
    kept = one["state"] == "accepted" and one["variant"] is not None
    place, size = (one["speed_up"], one["loss"]["measured"]), 160 / max(one["smaller"], 0.5)
    axes.scatter(*place, s=size, color="C0" if kept else "0.75", alpha=0.7, zorder=3 if kept else 2)
    if kept:
        side, shift = ("right", -5) if one["speed_up"] > middle else ("left", 5)
        axes.annotate(_clean(one["variant"]), place, (shift, 4), textcoords="offset points", ha=side, fontsize=7)


def _budget(axes: Axes, losses: Sequence[_Raw]) -> list[str]:
    """A line where what is allowed ends, of each metric one if they differ; the names of the metrics."""
    allowed: dict[float, list[str]] = {}
    for loss in losses:
        if loss["metric"] not in (names := allowed.setdefault(loss["allowed"], [])):
            names.append(loss["metric"])
    for at, style in zip(allowed, itertools.cycle((":", "--", "-."))):
        label = "budget" if len(allowed) == 1 else f"budget of {', '.join(allowed[at])}"
        axes.axhline(at, color="C3", linestyle=style, label=label)
    return list(dict.fromkeys(name for names in allowed.values() for name in names))


def _plain_ticks(axes: Axes, low: float, high: float) -> None:
    """Few, as plain numbers, along the logarithmic axis: those that matplotlib puts there are mathematics, unparsed."""
    decades = [10.0**decade for decade in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    for places in ((1, 1.2, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1,)):  # the most that are few enough
        ticks = [place * decade for decade in decades for place in places if low <= place * decade <= high]
        if len(ticks) <= _LOG_TICKS:
            break
    ticks = ticks[:: math.ceil(len(ticks) / _LOG_TICKS)]
    if len(ticks) < _LEAST_TICKS:
        even = MaxNLocator(_TICKS, steps=[1, 2, 5, 10]).tick_values(low, high)
        ticks = [float(at) for at in even if low <= at <= high]
    axes.set_xticks(ticks, [f"{tick:.6g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def _label(axes: Axes, x: str, y: str, where: _Place) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(loc=where)


def _clean(text: str) -> str:
    """A name that every reader of SVG can show; a leading underscore would hide it from the legend."""
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    shown = shown if len(shown) <= _NAME else shown[: _NAME - 1] + "…"
    return f"\N{ZERO WIDTH SPACE}{shown}" if shown.startswith("_") else shown


_PLOTS: dict[str, tuple[str, Callable[[Axes, Any], None]]] = {
    "roc": ("ROC curve", _roc),
    "pr": ("Precision and recall", _precision_recall),
    "calibration": ("Calibration", _calibration),
    "confusion": ("Confusion", _confusion),
    "gains": ("Gains", _gains),
    "residuals": ("Residuals", _residuals),
}
