"""How much rows of each class count."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from app.core.errors import InvalidSpec
from workers.data.findings import listed
from workers.learning import Array


def class_weights(
    asked: Mapping[str, float] | str | None, classes: Sequence[str], y: Array
) -> npt.NDArray[np.float64] | None:
    """Weights [K] under which training rows count 1 on average.

    Args:
        asked: by label, 1 where one is not named; or `balanced`: all classes count alike; None: all rows do.
        classes: the labels.
        y: class indices of the training rows [N].

    Raises:
        InvalidSpec: a label is none of the classes.
    """
    if asked is None:
        return None
    rows = np.bincount(y, minlength=len(classes))
    if isinstance(asked, str):
        weights = np.divide(1.0, rows, out=np.zeros(len(rows)), where=rows > 0)
    else:
        for label in asked:
            if label not in classes:
                msg = f"no row has the label '{label}'; the labels are {listed(list(classes))}"
                raise InvalidSpec.at("training", "class_weight", label, msg=msg)
        weights = np.asarray([asked.get(label, 1.0) for label in classes])
    return np.asarray(weights * len(y) / (weights * rows).sum(), np.float64)
