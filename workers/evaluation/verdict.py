"""Does the model fit, or has it learned its training rows by heart, or nothing?"""

from collections.abc import Mapping
from typing import Any

from workers.evaluation.intervals import Intervals
from workers.evaluation.metrics import LOWER_IS_BETTER

_LOST = 1 / 3  # of what is gained over one answer for all; losing more on unseen rows is over-fitting
_Metrics = Mapping[str, Mapping[str, float]]


def judge_fit(main: str, metrics: _Metrics, intervals: Intervals) -> dict[str, Any]:
    """Compare the parts in the main metric, each as a gain over one answer for all rows.

    A model is over-fitted if it does worse on test rows than on training rows by more than the doubt (half the 95 %
    interval) and loses more than a third of its gain; under-fitted if even on training rows its gain is within the
    doubt.

    Args:
        main: the main metric.
        metrics: of `train`, `validation`, `test` and `baseline`.
        intervals: of the test rows.

    Returns:
        The verdict (None where the metric is undefined on a part), the numbers, and a sentence.
    """
    parts = {part: metrics[part].get(main) for part in ("train", "validation", "test", "baseline")}
    width = intervals.width(main)
    told: dict[str, Any] = {"verdict": None, "metric": main, **parts}
    train, test, floor = parts["train"], parts["test"], parts["baseline"]
    if train is None or test is None or floor is None or width is None:
        return told | {"sentence": f"{main} is undefined on a part, or too few rows say how sure it is."}
    sign = -1 if main in LOWER_IS_BETTER else 1
    gain, gap, doubt = sign * (train - floor), sign * (train - test), width / 2
    numbers = {"gain": gain, "gap": gap, "doubt": doubt}
    said = f"{main} is {train:.4g} on training rows, {test:.4g} ± {doubt:.2g} on test rows and {floor:.4g} without any"
    said += " inputs"
    if gain <= doubt:
        return told | numbers | {"verdict": "under-fitted", "sentence": f"{said}: it has hardly learned anything."}
    if gap > max(doubt, _LOST * gain):
        lost = f"unseen rows lose {min(gap / gain, 9.99):.0%} of what it gains on training rows"
        advice = "a simpler model, more rows or more regularisation may help"
        return told | numbers | {"verdict": "over-fitted", "sentence": f"{said}: {lost}; {advice}."}
    return told | numbers | {"verdict": "fits", "sentence": f"{said}: what it learned holds for unseen rows."}
