"""What a recipe is called, and what a person is told of it."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from workers.compression.candidate import Candidate
from workers.compression.int8 import calibrated_with
from workers.compression.recipes import Recipe
from workers.compression.trees import NOTE
from workers.compression.weights import BLOCK

_TREES = {"first_trees", "merge_leaves"}
_PARTS = {
    "student": "distilled", "prune": "pruned", "learn_rounding": "aware", "drop_layers": "shorter",
    "cheapen": "cheaper", "low_rank": "low-rank", "half": "fp16", "half_weights": "half", "byte_weights": "bytes",
    "fuse": "fused", "simplify": "simplified",
}  # fmt: skip
_STORAGES = {"half_weights": "fp16", "byte_weights": "int8"}


def name_of(recipe: Recipe) -> str:
    """Short, from what counts most: `int8`, `distilled-int8`, `optimized`."""
    parts: list[str] = []
    for step in recipe:
        kind = step["step"]
        if kind == "quantize":
            parts.append(f"int{step['bits']}-weights" if step["method"] == "weights" else "int8")
        elif kind in _PARTS:
            parts.append(_PARTS[kind])
    return "-".join(dict.fromkeys(parts)) or "optimized"


def names_of(candidates: Sequence[Candidate], taken: Mapping[str, str]) -> list[str]:
    """One for each: that of the very same file if the version has it, else one that no other file of it has.

    Args:
        candidates: to be named.
        taken: digests of the files that the version has, by name.
    """
    known = {digest: name for name, digest in taken.items()}
    names: list[str] = []
    for one in candidates:
        found = known.get(one.sha256) if one.accepted else None
        names.append(found or free_name(name_of(one.recipe), {*taken, *names}))
    return names


def free_name(name: str, taken: Collection[str]) -> str:
    """The name, or with the first number that makes another of it."""
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free


def described(recipe: Recipe, seed: int, rows: int, trees: tuple[int, int] | None) -> dict[str, Any]:
    """What a variant's `recipe` says: the steps, and the last one that changes numbers in words.

    Args:
        recipe: its steps.
        seed: of everything that is drawn.
        rows: that there are to calibrate with.
        trees: how many are left, of how many.
    """
    told: dict[str, Any] = {"method": recipe[-1]["step"], "precision": "fp32"}
    if any(step["step"] in _TREES for step in recipe):
        told["method"] = "truncate_trees" if recipe[-1]["step"] == "first_trees" else recipe[-1]["step"]
        told["note"] = NOTE
    if trees is not None:
        told |= {"trees": trees[0], "of": trees[1]}
    for step in recipe:
        if step["step"] in _STORAGES:
            told |= {"storage": _STORAGES[step["step"]]}
        elif step["step"] == "half":
            told |= {"method": "half", "precision": "fp16"}
        elif step["step"] == "quantize":
            told |= _quantized(step, rows)
    return {**told, "steps": [dict(step) for step in recipe], "seed": seed}


def _quantized(step: Any, rows: int) -> dict[str, Any]:  # noqa: ANN401 - a step
    if step["method"] == "weights":
        return {"method": "weights", "precision": f"int{step['bits']} weights", "block": BLOCK}
    told = {"method": step["method"], "precision": "int8", "per_channel": True, "operators": step["operators"]}
    if step.get("keep_float"):
        told |= {"precision": "int8 and fp32", "keep_float": step["keep_float"]}
    if step["method"] == "static":
        told |= {"between": "fp32"} if step.get("float_between") else {"format": "qdq"}
        told |= {
            "activations": step["activations"],
            "calibration": {
                "rows": calibrated_with(step["calibration"], rows), "method": step["calibration"], "part": "train",
            },
        }  # fmt: skip
    return told
