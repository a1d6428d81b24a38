"""Folders of published weights: which a job may read, and what their JSON files say. Nothing here loads torch."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.core.errors import InvalidInput, InvalidSpec
from app.specs.families import family
from app.specs.jobs import TrainSpec
from workers.context import JobContext

WEIGHTS_FILE = "model.safetensors"
_PROCESSOR = "preprocessor_config.json"
_MODEL_TYPES = {"resnet": "resnet", "mobilenet": "mobilenet_v2", "convnext": "convnext", "vit": "vit"}


@dataclass(frozen=True, slots=True)
class Pixels:
    """What a published network takes: pictures of `side` pixels, each byte times `scale` plus `shift`, by channel."""

    side: int
    scale: tuple[float, ...]
    shift: tuple[float, ...]


def find_weights(job: JobContext, name: str, kind: str) -> Path:
    """The folder called `name` with weights of a model of type `kind`.

    Raises:
        InvalidSpec: the worker has no folder of weights, there is none of that name, or it holds something else.
    """
    allowed = str((job.spec.get("limits") or {}).get("weights") or "")
    if not allowed:
        raise refused("this worker has no folder of weights; set AIMASS_WORKER_WEIGHTS, or leave weights out")
    root = Path(allowed).resolve()
    folder = (root / name).resolve()
    if not folder.is_relative_to(root) or not folder.is_dir():
        raise refused(f"the worker's folder of weights has no '{name}'")
    for file in (folder / "config.json", folder / WEIGHTS_FILE):
        if not file.resolve().is_relative_to(root) or not file.is_file():
            raise refused(f"'{name}' has no {file.name}; save the model by save_pretrained, as safetensors in one file")
    found = str(_config(folder).get("model_type"))
    if found != kind:
        raise refused(f"'{name}' is a model of type {found}; this family takes {kind}")
    return folder


def find_picture_weights(job: JobContext, family_name: str, name: str) -> Path:
    """The folder called `name` for a family of pictures. InvalidSpec: as `find_weights`."""
    return find_weights(job, name, _MODEL_TYPES[family_name])


def pixels_of(folder: Path) -> Pixels:
    """From the folder's preprocessor_config.json, as transformers' image processors write it.

    Raises:
        InvalidSpec: it is not there, or does not say how large pictures are and how their bytes are scaled.
    """
    msg = f"it has no {_PROCESSOR} that says size, image_mean and image_std; add it by the processor's save_pretrained"
    try:
        told = json.loads((folder / _PROCESSOR).read_text(encoding="utf-8"))
        factor = float(told.get("rescale_factor", 1 / 255)) if told.get("do_rescale", True) else 1.0
        mean, std = [0.0], [1.0]
        if told.get("do_normalize", True):
            mean, std = ([float(value) for value in told[key]] for key in ("image_mean", "image_std"))
        scale, shift = [factor / s for s in std], [-m / s for m, s in zip(mean, std, strict=True)]
        side = _side(told["crop_size"] if told.get("do_center_crop") else told["size"])
        if side < 1:
            raise refused(f"its {_PROCESSOR} has a size of {side} pixels")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        raise refused(msg) from None
    if not all(map(math.isfinite, [*scale, *shift])):
        raise refused(msg)
    return Pixels(side, tuple(scale), tuple(shift))


def with_their_size(job: JobContext, spec: TrainSpec) -> TrainSpec:
    """The spec with the size of pictures that its published weights take, if it names such weights and no size.

    Raises:
        InvalidSpec: the folder is refused, or its network takes pictures of one other size.
    """
    name = spec.params.get("weights")
    if name is None or spec.family not in _MODEL_TYPES:
        return spec
    folder = find_picture_weights(job, spec.family, name)
    asked, fixed = spec.params["image_size"], _fixed_side(folder)
    if fixed is not None and asked not in {None, fixed}:
        raise InvalidSpec.at("params", "image_size", msg=f"these weights take {fixed} pixels a side; leave it out")
    params = {**spec.params, "image_size": asked or fixed or pixels_of(folder).side}
    try:
        return spec.model_copy(update={"params": family(spec.family).validate(params).model_dump(mode="json")})
    except InvalidInput:
        raise refused(
            f"its pictures have {params['image_size']} pixels a side, which is not between 8 and 512"
        ) from None


def labels_of(folder: Path) -> list[str]:
    """The classes of the folder's classifier, in their order; none if it has none."""
    found = _config(folder).get("id2label")
    if not isinstance(found, Mapping):
        return []
    try:
        return [str(found[key]) for key in sorted(found, key=int)]
    except ValueError:
        return []


def refused(msg: str) -> InvalidInput:
    """The folder cannot be taken."""
    return InvalidSpec.at("params", "weights", msg=msg)


def _side(told: Any) -> int:  # noqa: ANN401 - whatever the file says
    """Of a square. ValueError, KeyError or TypeError if it is none."""
    if not isinstance(told, dict):
        return int(told)
    if "shortest_edge" in told:
        return int(told["shortest_edge"])
    if told["height"] != told["width"]:
        raise ValueError("not a square")
    return int(told["height"])


def _fixed_side(folder: Path) -> int | None:
    """Of a network with an embedding for each place, which takes one size alone."""
    config = _config(folder)
    if config.get("model_type") != "vit":
        return None
    size = config.get("image_size", 224)  # transformers' default, which its files may leave out
    sides = set(size) if isinstance(size, list) else {size}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int):
        raise refused("its config.json names an image_size that is no square")
    return side


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["model_type"]
    except (ValueError, KeyError, TypeError):
        raise refused("its config.json is not one of transformers") from None
    return dict(config)
