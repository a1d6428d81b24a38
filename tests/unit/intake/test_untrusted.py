"""Files that are not what they claim, and models that are good."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.core.errors import InvalidData
from workers.intake.untrusted import read_untrusted

STATED = {
    "81_truncated.onnx": "cut off",
    "82_garbage.onnx": "not an ONNX model",
    "83_empty.onnx": "no graph",
    "84_external_data_0.onnx": "only a plain file name",
    "84_external_data_1.onnx": "only a plain file name",
    "84_external_data_2.onnx": "only a plain file name",
    "84_external_data_3.onnx": "only a plain file name",
    "84_external_data_4.onnx": "'missing.bin', which was not sent",
    "85_external_data_offset.onnx": "",
    "86_huge_initializer_claim.onnx": "claims 4,611,686,018,427,387,904 elements",
    "87_negative_dim.onnx": "negative dimension",
    "89_unknown_op.onnx": "has no operator",
    "90_custom_domain.onnx": "com.example.custom",
    "91_cycle.onnx": "cycle",
    "92_dangling_input.onnx": "which no node and no input makes",
    "93_duplicate_output.onnx": "'y', which is made elsewhere too",
    "94_opset_999.onnx": "opset 999",
    "99_pickle_named.onnx": "not an ONNX model",
}
GOOD = ("80_good_small.onnx", "96_nested_if_25.onnx", "97_hostile_names.onnx", "98_many_nodes_20000.onnx")


@pytest.mark.parametrize("name", sorted(STATED))
def test_a_hostile_file_gets_its_stated_answer(shared_data: Path, name: str):
    with pytest.raises(InvalidData) as refused:
        read_untrusted(shared_data / "hostile" / name, {})
    assert STATED[name] in refused.value.detail
    assert refused.value.errors[0].loc[0] in {"model", "data"}


@pytest.mark.parametrize("name", GOOD)
def test_a_strange_but_good_file_is_read(shared_data: Path, name: str):
    assert read_untrusted(shared_data / "hostile" / name, {}).graph.node


def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model(
    *nodes: onnx.NodeProto, initializers: list[TensorProto] | None = None, outputs: tuple[str, ...] = ("y",)
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes), "g", [value("x", "n", 4)], [value(o, "n", 4) for o in outputs], initializers or []
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    )


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., onnx.ModelProto]:
    def run(made: onnx.ModelProto, **beside: bytes) -> onnx.ModelProto:
        path = tmp_path / "model.onnx"
        path.write_bytes(made.SerializeToString())
        names = {name.replace("_bin", ".bin"): content for name, content in beside.items()}
        for name, content in names.items():
            (tmp_path / name).write_bytes(content)
        return read_untrusted(path, {name: len(content) for name, content in names.items()})

    return run


def external(location: str = "w.bin", **more: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, text in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=text)
    return tensor


ADD = helper.make_node("Add", ["x", "w"], ["y"], name="plus")


def test_external_data_that_was_sent(read: Callable[..., onnx.ModelProto]):
    assert read(model(ADD, initializers=[external(offset="16", length="16")]), w_bin=bytes(32))


@pytest.mark.parametrize(
    "more", [{"offset": "20"}, {"offset": "-1"}, {"length": "8"}, {"length": "99999999999999999999"}, {"offset": "1e3"}]
)
def test_external_data_outside_its_file(read: Callable[..., onnx.ModelProto], more: dict[str, str]):
    with pytest.raises(InvalidData, match="'w'"):
        read(model(ADD, initializers=[external(**more)]), w_bin=bytes(32))


@pytest.mark.parametrize("name", ["../w.bin", "/w.bin", "a/w.bin", "a\\w.bin", "", ".", "..", "w.bin\n"])
def test_external_data_elsewhere(read: Callable[..., onnx.ModelProto], name: str):
    with pytest.raises(InvalidData, match="plain file name"):
        read(model(ADD, initializers=[external(name)]), w_bin=bytes(32))


@pytest.mark.parametrize("key", ["location", "offset"])
def test_external_data_that_is_told_twice(read: Callable[..., onnx.ModelProto], key: str):
    """Readers differ in which of two entries counts."""
    tensor = external(offset="0")
    first = {"location": "../../etc/hostname", "offset": "4"}[key]
    entries = [(key, first), *((pair.key, pair.value) for pair in tensor.external_data)]
    tensor.ClearField("external_data")
    for name, text in entries:
        tensor.external_data.add(key=name, value=text)
    with pytest.raises(InvalidData, match=f"'w' has two entries '{key}'"):
        read(model(ADD, initializers=[tensor]), w_bin=bytes(32))


def test_a_constant_in_a_nested_graph_is_checked(read: Callable[..., onnx.ModelProto]):
    lying = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**40])
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=lying)], "then", [], [value("c", 4)])
    test = helper.make_node("Constant", [], ["t"], value=numpy_helper.from_array(np.ones((), bool)))
    branch = helper.make_node("If", ["t"], ["y"], then_branch=inner, else_branch=inner)
    with pytest.raises(InvalidData, match="1,099,511,627,776 elements"):
        read(model(test, branch))


def test_a_cycle_names_its_nodes(read: Callable[..., onnx.ModelProto]):
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="second"),
    ]
    with pytest.raises(InvalidData, match=r"cycle: .*'first'.*'second'|cycle: .*'second'.*'first'"):
        read(model(*nodes, outputs=("b",)))


def test_nodes_out_of_order(read: Callable[..., onnx.ModelProto]):
    nodes = [helper.make_node("Relu", ["a"], ["y"], name="late"), helper.make_node("Relu", ["x"], ["a"], name="early")]
    with pytest.raises(InvalidData, match=r"'late' .*comes before a node that it needs"):
        read(model(*nodes))


def test_operators_of_the_runtime_are_known(read: Callable[..., onnx.ModelProto]):
    assert read(
        model(
            helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft"),
            initializers=[numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")],
        )
    )
    with pytest.raises(InvalidData, match="'NoSuch'"):
        read(model(helper.make_node("NoSuch", ["x"], ["y"], domain="com.microsoft")))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.bool_, np.complex64])
@pytest.mark.parametrize("raw", [True, False])
def test_tensors_that_hold_what_they_claim(read: Callable[..., onnx.ModelProto], dtype: type, *, raw: bool):
    array = np.ones((3, 2), dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    tensor = (
        numpy_helper.from_array(array, "w")
        if raw
        else helper.make_tensor("w", kind, array.shape, array.ravel().tolist())
    )
    unused = helper.make_node("Identity", ["w"], ["z"])
    assert read(model(helper.make_node("Relu", ["x"], ["y"]), unused, initializers=[tensor]))


OWN = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]


def function(name: str, *calls: str, domain: str = "own") -> onnx.FunctionProto:
    """Calls these one after another."""
    values = ["a", *(f"v{at}" for at in range(len(calls) - 1)), "b"]
    nodes = [
        helper.make_node(call, [values[at]], [values[at + 1]], domain="" if call == "Relu" else domain)
        for at, call in enumerate(calls)
    ]
    return helper.make_function(domain, name, ["a"], ["b"], nodes, OWN)


def calling(name: str, *functions: onnx.FunctionProto) -> onnx.ModelProto:
    made = model(helper.make_node(name, ["x"], ["y"], domain="own"))
    made.opset_import.add(domain="own", version=1)
    made.functions.extend(functions)
    return made


def test_functions_that_are_called(read: Callable[..., onnx.ModelProto]):
    assert read(calling("F1", function("F1", "F0", "F0"), function("F0", "Relu")))


def test_functions_that_grow_beyond_measure(read: Callable[..., onnx.ModelProto]):
    """Each calls the one before twice: 60 nodes in the file, 2^29 when it is run."""
    doubling = [function(f"F{at}", *[f"F{at - 1}"] * 2) for at in range(1, 30)]
    with pytest.raises(InvalidData, match=r"function 'F19' of 'own' has more than 500,000 nodes"):
        read(calling("F29", function("F0", "Relu"), *doubling))
    large = calling("F18", function("F0", "Relu"), *doubling[:18])
    large.graph.node.extend(helper.make_node("F18", ["x"], [f"y{at}"], domain="own") for at in range(2))
    with pytest.raises(InvalidData, match=r"the model has more than 500,000 nodes"):
        read(large)


def test_functions_that_call_each_other_in_a_circle(read: Callable[..., onnx.ModelProto]):
    with pytest.raises(InvalidData, match=r"in a circle: function 'F.' of 'own'"):
        read(calling("F1", function("F1", "F2"), function("F2", "F1")))


def test_a_function_that_is_there_twice(read: Callable[..., onnx.ModelProto]):
    with pytest.raises(InvalidData, match=r"'F0' of 'own' is there twice"):
        read(calling("F0", function("F0", "Relu"), function("F0", "Relu", "Relu")))


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (external("../../etc/hostname"), "only a plain file name"),
        (TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**40]), "1,099,511,627,776 elements"),
    ],
)
def test_a_default_of_a_function_is_checked(read: Callable[..., onnx.ModelProto], tensor: TensorProto, words: str):
    constant = helper.make_node("Constant", [], ["c"])
    constant.attribute.add(name="value", ref_attr_name="w", type=onnx.AttributeProto.TENSOR)
    made = helper.make_function("own", "F", ["a"], ["b"], [constant, helper.make_node("Add", ["a", "c"], ["b"])], OWN)
    made.attribute_proto.append(helper.make_attribute("w", tensor))
    with pytest.raises(InvalidData, match=words):
        read(calling("F", made))


def test_functions_are_given_no_graphs(read: Callable[..., onnx.ModelProto]):
    branch = helper.make_graph([helper.make_node("Relu", ["x"], ["z"])], "then", [], [value("z", "n", 4)])
    made = function("F", "Relu")
    made.attribute.append("branch")
    given = calling("F", made)
    given.graph.node[0].attribute.append(helper.make_attribute("branch", branch))
    with pytest.raises(InvalidData, match=r"node 'y' \(F\): function 'F' of 'own' is given a graph"):
        read(given)
    made = function("F", "Relu")
    made.attribute_proto.append(helper.make_attribute("branch", branch))
    with pytest.raises(InvalidData, match=r"function 'F' of 'own' is given a graph"):
        read(calling("F", made))
