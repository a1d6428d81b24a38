"""What the first run finds out: may rows of strangers be answered together?"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.core.errors import InvalidData
from workers.intake import independence
from workers.intake.first_run import FirstRun, first_run
from workers.intake.one_run import Arrays

Node = onnx.NodeProto
First = Callable[..., FirstRun]


def constant(name: str, value: object, dtype: type) -> TensorProto:
    return numpy_helper.from_array(np.array(value, dtype), name)


def model(
    nodes: list[Node],
    kinds: dict[str, int],
    constants: tuple[TensorProto, ...] = (),
    output: int = TensorProto.FLOAT,
    shape: tuple[str | int, ...] = ("n", 3),
) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info(name, kind, ["n", 3]) for name, kind in kinds.items()]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", output, shape)], list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture
def first(tmp_path: Path) -> First:
    def run(made: onnx.ModelProto, **more: bool | None) -> FirstRun:
        path = tmp_path / "model.onnx"
        path.write_bytes(made.SerializeToString())
        return first_run(path, made, 1, **more)

    return run


def halved_maximum() -> onnx.ModelProto:
    """y = x + max(x) // 2: zeros and ones tell nothing of it."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Div", ["m", "two"], ["half"]),
        helper.make_node("Add", ["x", "half"], ["y"]),
    ]
    return model(nodes, {"x": TensorProto.INT64}, (constant("two", 2, np.int64),), TensorProto.INT64)


def repeated(node: onnx.NodeProto) -> onnx.GraphProto:
    """The body of a loop that makes `more` of `s` by this node, and goes on."""
    info = helper.make_tensor_value_info
    return helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still"]), node],
        "body",
        [info("i", TensorProto.INT64, []), info("on", TensorProto.BOOL, []), info("s", TensorProto.FLOAT, None)],
        [info("still", TensorProto.BOOL, []), info("more", TensorProto.FLOAT, None)],
    )


def looped() -> onnx.ModelProto:
    """Adds 1/2 whenever another step is due; as many steps as the largest number in the batch is above one."""
    nodes = [
        helper.make_node("ReduceMax", ["ids"], ["m"], keepdims=0),
        helper.make_node("Sub", ["m", "one"], ["steps"]),
        helper.make_node("Cast", ["ids"], ["f"], to=TensorProto.FLOAT),
        helper.make_node(
            "Loop", ["steps", "yes", "f"], ["y"], body=repeated(helper.make_node("Add", ["s", "half"], ["more"]))
        ),
    ]
    constants = (constant("one", 1, np.int64), constant("yes", 1, np.bool_), constant("half", 0.5, np.float32))
    return model(nodes, {"ids": TensorProto.INT64}, constants)


def scaled() -> onnx.ModelProto:
    """Pictures of bytes are told from others by the largest value of the batch."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Max", ["m", "limit"], ["by"]),
        helper.make_node("Div", ["x", "by"], ["y"]),
    ]
    return model(nodes, {"x": TensorProto.FLOAT}, (constant("limit", 255, np.float32),))


def padded() -> onnx.ModelProto:
    """Each text is split into as many words as the longest of the batch has."""
    nodes = [
        helper.make_node("StringSplit", ["x"], ["words", "counts"], delimiter=" "),
        helper.make_node("Shape", ["words"], ["s"]),
        helper.make_node("ReduceMax", ["s"], ["m"], keepdims=0),
        helper.make_node("Add", ["counts", "m"], ["y"]),
    ]
    made = model(nodes, {"x": TensorProto.STRING}, output=TensorProto.INT64)
    made.opset_import[0].version = 20
    return made


def looked_up(more: list[Node] | None = None, sizes: tuple[int, int] = (50, 2)) -> onnx.ModelProto:
    """Two embeddings, added; ids above their vocabularies are refused."""
    nodes = [
        helper.make_node("Gather", ["words", "ids"], ["w"]),
        helper.make_node("Gather", ["types", "kinds"], ["t"]),
        helper.make_node("Add", ["w", "t"], ["both"]),
        *(more or [helper.make_node("Identity", ["both"], ["y"])]),
    ]
    rng = np.random.default_rng(0)
    tables = [
        constant(name, rng.standard_normal(n), np.float32) for name, n in zip(("words", "types"), sizes, strict=True)
    ]
    return model(nodes, {"ids": TensorProto.INT64, "kinds": TensorProto.INT64}, tuple(tables))


def beside_large_ids() -> onnx.ModelProto:
    """The embeddings, and half the largest id of the batch; only the ids can be large."""
    more = [
        helper.make_node("ReduceMax", ["ids"], ["m"], keepdims=0),
        helper.make_node("Div", ["m", "two"], ["half"]),
        helper.make_node("Cast", ["half"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["both", "f"], ["y"]),
    ]
    made = looked_up(more, (20_000, 2))
    made.graph.initializer.append(constant("two", 2, np.int64))
    return made


@pytest.mark.parametrize("make", [halved_maximum, looped, scaled, padded, beside_large_ids])
def test_rows_that_change_with_large_neighbours_are_not_batched(first: First, make: Callable[[], onnx.ModelProto]):
    found = first(make())
    assert not found.signature.batched
    assert found.why_not_batched
    with pytest.raises(InvalidData, match=r"^metadata\.batched: true cannot be held to: .* alone") as refused:
        first(make(), batched=True)
    assert refused.value.errors[0].loc == ("metadata", "batched")


def wide_sum() -> onnx.ModelProto:
    """Sums of large numbers of both signs, in another order for a row than for a batch."""
    rng = np.random.default_rng(1)
    weights = [
        constant("a", rng.standard_normal((3, 2000)), np.float32),
        constant("b", rng.standard_normal((2000, 3)), np.float32),
    ]
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    return model(nodes, {"x": TensorProto.FLOAT}, tuple(weights))


@pytest.mark.parametrize("make", [looked_up, wide_sum])
def test_rows_that_stand_alone_are_batched(first: First, make: Callable[[], onnx.ModelProto]):
    for batched in (None, True):
        found = first(make(), batched=batched)
        assert found.signature.batched
        assert not found.why_not_batched


def test_the_sender_knows_better(first: First):
    found = first(looked_up(), batched=False)
    assert not found.signature.batched
    assert found.signature.outputs[0].shape == (-1, 3)


def counted() -> onnx.ModelProto:
    """Answers otherwise from five rows on."""
    nodes = [
        helper.make_node("Shape", ["x"], ["count"], end=1),
        helper.make_node("Div", ["count", "five"], ["fives"]),
        helper.make_node("Cast", ["fives"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "f"], ["y"]),
    ]
    return model(nodes, {"x": TensorProto.FLOAT}, (constant("five", 5, np.int64),))


def test_more_rows_are_tried_than_the_first_ones(first: First):
    assert not first(counted()).signature.batched


def test_large_rows_are_not_kept(first: First, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("workers.intake.independence._MOST_ELEMENTS", 5)
    assert first(wide_sum()).signature.batched


def test_no_batch_axis_is_said(first: First):
    made = wide_sum()
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    made.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(InvalidData, match="first axes"):
        first(made, batched=True)


def test_a_model_that_large_values_slow_down_is_ended(first: First, monkeypatch: pytest.MonkeyPatch):
    """They loop for hours, and whoever shares a run with them would wait."""
    monkeypatch.setattr("workers.intake.independence._RUN_S", 0.2)
    nodes = [
        helper.make_node("ReduceMax", ["ids"], ["m"], keepdims=0),
        helper.make_node("Sub", ["m", "one"], ["more_than_one"]),
        helper.make_node("Mul", ["more_than_one", "many"], ["steps"]),
        helper.make_node("Cast", ["ids"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Loop", ["steps", "yes", "f"], ["y"], body=repeated(helper.make_node("Abs", ["s"], ["more"]))),
    ]
    constants = (constant("one", 1, np.int64), constant("yes", 1, np.bool_), constant("many", 2**40, np.int64))
    assert "far longer" in first(model(nodes, {"ids": TensorProto.INT64}, constants)).why_not_batched


@pytest.fixture
def priced(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Arrays], float]], None]:
    """Lets each run of `independence` double its batch, and take as long as it costs by a clock of its own."""

    def price(cost: Callable[[Arrays], float]) -> None:
        clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)

        @contextmanager
        def ended_after(seconds: float) -> Iterator[Any]:
            yield SimpleNamespace(seconds=seconds, terminate=False)

        def run(_session: object, batch: Arrays, options: Any) -> Arrays:
            took = cost(batch)
            clock.now += min(took, options.seconds)
            if took > options.seconds:
                options.terminate = True
                raise InvalidData.at("model", msg="ended")
            return {"y": batch["x"] * 2}

        for name, fake in {"time": clock, "ended_after": ended_after, "run": run}.items():
            monkeypatch.setattr(independence, name, fake)

    return price


def depends() -> str:
    made = np.ones((2, 3), np.float32)
    return independence.dependence(None, {"x": "FP32"}, {"x": made}, {"y": made * 2})  # type: ignore[arg-type] # not run


@pytest.mark.parametrize("row_s", [0.0, 0.6, 1.7, 100.0])
def test_a_slow_model_is_not_one_that_large_values_slow_down(priced: Callable[[Any], None], row_s: float):
    """As many rows take as many times as long, in the last batch too, which holds most of those that were seen."""
    priced(lambda batch: row_s * len(batch["x"]))
    assert depends() == ""


def test_nor_is_one_whose_rows_are_in_time_beside_fewer(priced: Callable[[Any], None]):
    priced(lambda batch: 2.0 * len(batch["x"]) if len(batch["x"]) < 5 else 1e6)
    assert depends() == ""


@pytest.mark.parametrize("name", ["x\n", "x\0<script>", 'x"', "x\\"])
@pytest.mark.parametrize("kind", ["input", "output"])
def test_names_that_no_request_can_carry(first: First, name: str, kind: str):
    made = model([helper.make_node("Relu", ["x"], ["y"])], {"x": TensorProto.FLOAT})
    if kind == "input":
        made.graph.input[0].name = made.graph.node[0].input[0] = name
    else:
        made.graph.output[0].name = made.graph.node[0].output[0] = name
    with pytest.raises(InvalidData, match=f"{kind} 'x.*in its name; rename it"):
        first(made)


def of_rank(rank: int, more: int = 0, *, declared: bool = True) -> onnx.ModelProto:
    """As many axes given, and some more in the answer."""
    made = model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        {"x": TensorProto.FLOAT},
        (constant("shape", [-1, *[1] * (rank + more - 1)], np.int64),),
        shape=("n", *[1] * (rank + more - 1)),
    )
    made.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *[1] * (rank - 1)]))
    if not declared:
        made.graph.output[0].type.tensor_type.ClearField("shape")
    return made


def test_the_largest_rank(first: First):
    assert first(of_rank(32)).signature.batched


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (of_rank(33), "input 'x' has 33 axes, at most 32 are served"),
        (of_rank(100), "input 'x' has 100 axes"),
        (of_rank(32, 1), "output 'y' has 33 axes"),
        (of_rank(32, 1, declared=False), "output 'y' has 33 axes"),
        (of_rank(32, 68, declared=False), "output 'y' has 100 axes"),
    ],
)
def test_more_axes_than_an_array_has(first: First, made: onnx.ModelProto, words: str):
    with pytest.raises(InvalidData, match=words):
        first(made)


def test_strings_beside_bfloat16(first: First):
    """Either alone is taken; together ONNX Runtime's package for Python takes neither as it must."""
    node = helper.make_node("Identity", ["x"], ["y"])
    alone = model([node], {"x": TensorProto.BFLOAT16}, output=TensorProto.BFLOAT16)
    assert first(alone).signature.inputs[0].datatype == "BF16"
    with pytest.raises(InvalidData, match="no strings beside bfloat16; add a Cast"):
        first(model([node], {"x": TensorProto.BFLOAT16, "words": TensorProto.STRING}, output=TensorProto.BFLOAT16))
