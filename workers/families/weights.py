"""Published weights that a job fine-tunes: safetensors in a folder that the worker allows, and nothing else.

Nothing is downloaded, unpickled, or run: transformers' own classes are made from the folder's numbers.
"""

import hashlib
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import logging as told

from workers.families.weight_folders import WEIGHTS_FILE, refused

_DAMAGED = (SafetensorError, StrictDataclassError)
_Model = TypeVar("_Model", bound=PreTrainedModel)


def load_pretrained(
    made: type[_Model],
    folder: Path,
    replaced: tuple[str, ...] = (),
    **how: Any,  # noqa: ANN401 - of the model's class
) -> _Model:
    """A model of a folder that `find_weights` gave, in 32-bit floats.

    Args:
        made: the model's class.
        folder: with config.json and model.safetensors.
        replaced: beginnings of the names of weights that may be missing, or of another shape: they are random then.
        how: more of the class's configuration.

    Raises:
        InvalidSpec: the file is damaged, or lacks weights.
    """
    # A job prints nothing; what does not fit is said below.
    told.disable_progress_bar()  # type: ignore[no-untyped-call]  # so it is in transformers
    told.set_verbosity_error()  # type: ignore[no-untyped-call]  # the same
    try:
        loaded: Any = made.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True,
            ignore_mismatched_sizes=True, **how,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError, *_DAMAGED) as error:
        raise refused(f"its weights cannot be read: {str(error)[:200]}") from None
    model, info = loaded
    lacking = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    lacking = {name for name in lacking if not name.startswith(replaced)} if replaced else lacking
    if lacking:
        names = ", ".join(sorted(lacking)[:5])
        raise refused(f"its weights lack {len(lacking)} that the network has, or have them in another shape: {names}")
    return cast("_Model", model)


def told_of(folder: Path, name: str) -> dict[str, Any]:
    """What the model card says of the weights."""
    with (folder / WEIGHTS_FILE).open("rb") as file:
        return {"folder": name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
