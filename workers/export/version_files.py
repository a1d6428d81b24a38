"""The JSON files of a model version, as every job that makes one writes them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.core.signature import Signature
from app.core.version_folder import GOLDEN, SIGNATURE

Arrays = Mapping[str, npt.NDArray[Any]]


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Strict JSON: NaN is a mistake."""
    path.write_text(json.dumps(value, allow_nan=False, ensure_ascii=False, indent=1), encoding="utf-8")


def write_contract(folder: Path, signature: Signature, inputs: Arrays, outputs: Arrays) -> None:
    """`signature.json`, and rows with their answers in `golden.json`, which serving must give again."""
    kinds = {tensor.name: tensor.datatype for tensor in (*signature.inputs, *signature.outputs)}
    golden = {
        side: {name: _tensor(array, kinds[name]) for name, array in arrays.items()}
        for side, arrays in (("inputs", inputs), ("outputs", outputs))
    }
    write_json(folder / SIGNATURE, signature.to_json())
    write_json(folder / GOLDEN, golden)


def _tensor(array: npt.NDArray[Any], datatype: str) -> dict[str, Any]:
    """An Open Inference Protocol tensor; numbers that JSON has no words for become null, which is read as NaN."""
    data = [None if isinstance(x, float) and not np.isfinite(x) else x for x in array.ravel().tolist()]
    return {"datatype": datatype, "shape": list(array.shape), "data": data}
