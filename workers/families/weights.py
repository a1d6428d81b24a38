"""Published weights that a job fine-tunes: safetensors in a folder that the worker allows, and nothing else.

Nothing is downloaded, unpickled, or run: transformers' own classes are made from the folder's numbers.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from app.core.errors import InvalidSpec
from workers.context import JobContext

_FILE = "model.safetensors"
_Model = TypeVar("_Model", bound=PreTrainedModel)


def find_weights(job: JobContext, name: str, kind: str) -> Path:
    """The folder called `name` with weights of a model of type `kind`.

    Raises:
        InvalidSpec: the worker has no folder of weights, there is none of that name, or it holds something else.
    """
    allowed = str((job.spec.get("limits") or {}).get("weights") or "")
    if not allowed:
        raise _refused("this worker has no folder of weights; set AIMASS_WORKER_WEIGHTS, or leave weights out")
    root = Path(allowed).resolve()
    folder = (root / name).resolve()
    if not folder.is_relative_to(root) or not folder.is_dir():
        raise _refused(f"the worker's folder of weights has no '{name}'")
    for file in (folder / "config.json", folder / _FILE):
        if not file.resolve().is_relative_to(root) or not file.is_file():
            raise _refused(
                f"'{name}' has no {file.name}; save the model by save_pretrained, as safetensors in one file"
            )
    found = _model_type(folder / "config.json")
    if found != kind:
        raise _refused(f"'{name}' is a model of type {found}; this family takes {kind}")
    return folder


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
    try:
        loaded: Any = made.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True,
            ignore_mismatched_sizes=True, **how,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        raise _refused(f"its weights cannot be read: {str(error)[:200]}") from None
    model, info = loaded
    lacking = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    lacking = {name for name in lacking if not name.startswith(replaced)} if replaced else lacking
    if lacking:
        names = ", ".join(sorted(lacking)[:5])
        raise _refused(f"its weights lack {len(lacking)} that the network has, or have them in another shape: {names}")
    return cast("_Model", model)


def told_of(folder: Path, name: str) -> dict[str, Any]:
    """What the model card says of the weights."""
    with (folder / _FILE).open("rb") as file:
        return {"folder": name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _model_type(file: Path) -> str:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        return str(config["model_type"])
    except (ValueError, KeyError, TypeError):
        raise _refused("its config.json is not one of transformers") from None


def _refused(msg: str) -> Exception:
    return InvalidSpec.at("params", "weights", msg=msg)
