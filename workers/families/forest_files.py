"""A growing forest's trees on disk: arrays alone, nothing pickled, and no file is written twice."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.tree._tree import Tree

from workers.training.files import write_atomically


def save_trees(folder: Path, trees: Sequence[Tree], position: int) -> None:
    """Add a file with `trees`, the first of which is the forest's tree number `position`."""
    states = [tree.__getstate__() for tree in trees]
    nodes = [state["nodes"] for state in states]
    buffer = io.BytesIO()
    np.savez(
        buffer,
        nodes=np.concatenate(nodes, dtype=nodes[0].dtype),  # which would be packed otherwise
        values=np.concatenate([state["values"] for state in states]),
        sizes=np.asarray([state["node_count"] for state in states]),
        depths=np.asarray([state["max_depth"] for state in states]),
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(_file(folder, position), buffer.getvalue())


def load_trees(folder: Path, first: Tree) -> list[Tree]:
    """The saved trees in their order.

    None, and the files are removed, if they do not begin with `first`: a tree that was grown just now shows whether the
    rows, their encoding, and scikit-learn are those of the saved forest.
    """
    trees: list[Tree] = []
    while (path := _file(folder, len(trees))).exists():
        with np.load(path, allow_pickle=False) as file:
            if not trees and not _begins_with(file, first):
                for stale in folder.glob("trees-*.npz"):
                    stale.unlink()
                break
            ends = np.cumsum(file["sizes"])
            parts = zip(np.split(file["nodes"], ends[:-1]), np.split(file["values"], ends[:-1]), strict=True)
            trees += [_tree(first, *part, depth) for part, depth in zip(parts, file["depths"].tolist(), strict=True)]
    return trees


def _file(folder: Path, position: int) -> Path:
    return folder / f"trees-{position:05}.npz"


def _begins_with(file: Any, first: Tree) -> bool:  # noqa: ANN401 - numpy's NpzFile has no public name
    state, size = first.__getstate__(), first.node_count
    return all(
        file[name].dtype == state[name].dtype and np.array_equal(file[name][:size], state[name])
        for name in ("nodes", "values")
    )


def _tree(like: Tree, nodes: Any, values: Any, depth: int) -> Tree:  # noqa: ANN401 - arrays of scikit-learn's own types
    make, sizes, _ = like.__reduce__()
    tree = make(*sizes)
    tree.__setstate__({"max_depth": depth, "node_count": len(nodes), "nodes": nodes, "values": values})
    return tree
