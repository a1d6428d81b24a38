"""Plots as SVG and PNG. The same numbers give the same bytes; names are drawn as they are, whatever they hold."""

import io
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_STYLE: Any = {  # its keys are checked by matplotlib
    "svg.hashsalt": "aimass", "svg.fonttype": "none", "text.parse_math": False, "font.size": 8, "lines.linewidth": 1.2,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3,
    "savefig.dpi": 150, "legend.frameon": False, "legend.fontsize": 7,
}  # fmt: skip
_SIZE = (4.4, 3.4)  # inches; a PNG is 660 by 510 pixels, some tens of kilobytes
_AXES = (0.14, 0.14, 0.82, 0.76)  # left, bottom, width, height; shares of the figure
_TICKS = 5
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
    for one in data["candidates"]:
        if one["failed"]:
            continue
        kept = one["state"] == "accepted" and one["variant"] is not None
        size = 160 / max(one["smaller"], 0.5)
        axes.scatter(one["speed_up"], one["loss"]["measured"], s=size, color="C0" if kept else "0.75", alpha=0.7)
        if kept:
            axes.annotate(_clean(one["variant"]), (one["speed_up"], one["loss"]["measured"]), fontsize=7)
    axes.axhline(data["budget"]["max_metric_drop"], color="C3", linestyle=":", label="budget")
    axes.set_xscale("log")
    _label(axes, "times the full model's rows a second", "loss on validation rows", "best")


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
