"""The graphs of an untrusted model: known operators, and values that flow from the inputs to the outputs."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter

import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from app.core.errors import InvalidData

MAX_NODES = 500_000
MAX_DEPTH = 50  # of graphs in If, Loop and Scan
_STANDARD = {"": "ai.onnx", "ai.onnx.ml": "ai.onnx.ml"}
_NO_GRAPHS = "is given a graph as attribute, which it could repeat without end; export it with its functions inlined"
_CONTRIB = "com.microsoft"  # ONNX Runtime's own operators


def check_graphs(model: ModelProto) -> None:
    """InvalidData, naming node and operator, unless every graph could run."""
    if not model.graph.node:
        raise InvalidData.at("model", msg="the file holds no graph: it is not an ONNX model")
    opsets = _opsets(model)
    calls = _Calls(model)
    for graph_nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in _every_node(graph_nodes):
            if not calls.known(node):
                _check_operator(node, opsets)
    calls.check_size(model.graph)
    _check_flow(model.graph, frozenset())


class _Calls:
    """The model's own functions: how many nodes each stands for once the functions that it calls are written out."""

    def __init__(self, model: ModelProto) -> None:
        self._functions: dict[tuple[str, str, str], FunctionProto] = {}
        for function in model.functions:
            key = _plain(function.domain), function.name, function.overload
            if key in self._functions:
                raise InvalidData.at("model", msg=f"{_title(function)} is there twice; name each differently")
            if any(_graphs(default) for default in function.attribute_proto):
                raise InvalidData.at("model", msg=f"{_title(function)} {_NO_GRAPHS}")
            self._functions[key] = function

    def known(self, node: NodeProto) -> bool:
        """True if the node calls one of them. InvalidData if it hands over a graph."""
        function = self._functions.get(_callee(node))
        if function is not None and _inner(node):
            raise InvalidData.at("model", msg=f"{label(node)}: {_title(function)} {_NO_GRAPHS}")
        return function is not None

    def check_size(self, graph: GraphProto) -> None:
        """InvalidData if they call each other in a circle, or if anything stands for more than MAX_NODES nodes."""
        nodes = {key: [_callee(n) for n in _every_node(function.node)] for key, function in self._functions.items()}
        needs = {key: {callee for callee in callees if callee in nodes} for key, callees in nodes.items()}
        try:
            order = list(TopologicalSorter(needs).static_order())
        except CycleError as error:
            around = ", ".join(_title(self._functions[key]) for key in error.args[1][:5])
            raise InvalidData.at("model", msg=f"functions call each other in a circle: {around}") from None
        sizes: dict[tuple[str, str, str], int] = {}
        for key in order:
            sizes[key] = sum(sizes.get(callee, 1) for callee in nodes[key])
            _check_count(sizes[key], _title(self._functions[key]))
        _check_count(sum(sizes.get(_callee(node), 1) for node in _every_node(graph.node)), "the model")


def _check_count(count: int, what: str) -> None:
    if count > MAX_NODES:
        raise InvalidData.at("model", msg=f"{what} has more than {MAX_NODES:,} nodes, with those of functions called")


def _callee(node: NodeProto) -> tuple[str, str, str]:
    return _plain(node.domain), node.op_type, node.overload


def _plain(domain: str) -> str:
    """The standard operators have a domain of two names."""
    return "" if domain == _STANDARD[""] else domain


def _title(function: FunctionProto) -> str:
    return f"function '{function.name}' of '{function.domain}'"[:200]


def tensors_of(model: ModelProto) -> Iterator[TensorProto]:
    """Every constant tensor: initializers of all graphs, sparse ones, attributes of nodes and defaults of functions."""
    graphs = [model.graph]
    attributes = [default for function in model.functions for default in function.attribute_proto]
    attributes += _attributes(node for function in model.functions for node in function.node)
    while graphs or attributes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            attributes += _attributes(graph.node)
        while attributes:
            attribute = attributes.pop()
            yield from ([attribute.t] if attribute.HasField("t") else [])
            yield from attribute.tensors
            sparse_ones = [*([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else [])]
            for sparse in (*sparse_ones, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            graphs += _graphs(attribute)


def _attributes(nodes: Iterable[NodeProto]) -> list[AttributeProto]:
    return [attribute for node in nodes for attribute in node.attribute]


def label(node: NodeProto) -> str:
    """How a message calls a node."""
    return f"node '{node.name or next(iter(node.output), '')}' ({node.op_type})"[:200]


def _graphs(attribute: AttributeProto) -> list[GraphProto]:
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _inner(node: NodeProto) -> list[GraphProto]:
    return [graph for attribute in node.attribute for graph in _graphs(attribute)]


def _every_node(nodes: Iterable[NodeProto], depth: int = 0) -> Iterator[NodeProto]:
    if depth > MAX_DEPTH:
        raise InvalidData.at("model", msg=f"graphs are nested more than {MAX_DEPTH} deep")
    for node in nodes:
        yield node
        for graph in _inner(node):
            yield from _every_node(graph.node, depth + 1)


def _opsets(model: ModelProto) -> dict[str, int]:
    opsets = {_plain(entry.domain): entry.version for entry in model.opset_import}
    known = {"": onnx.defs.onnx_opset_version(), "ai.onnx.ml": _newest_ml()}
    for domain, newest in known.items():
        if domain in opsets and not 1 <= opsets[domain] <= newest:
            raise InvalidData.at(
                "model",
                msg=f"opset {opsets[domain]} of {_STANDARD[domain]} is not known; export it with 1 to {newest}",
            )
    return opsets


@cache
def _newest_ml() -> int:
    return max(
        schema.since_version for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == "ai.onnx.ml"
    )


@cache
def _contrib_operators() -> frozenset[str]:
    return frozenset(schema.name for schema in ort_state.get_all_operator_schema() if schema.domain == _CONTRIB)


def _check_operator(node: NodeProto, opsets: Mapping[str, int]) -> None:
    domain = _plain(node.domain)
    if domain == _CONTRIB:
        if node.op_type not in _contrib_operators():
            raise InvalidData.at(
                "model", msg=f"{label(node)}: ONNX Runtime has no operator '{node.op_type}' in {_CONTRIB}"
            )
        return
    if domain not in _STANDARD:
        raise InvalidData.at(
            "model", msg=f"{label(node)}: the operators of '{domain}' are custom code, which is never run here"
        )
    if domain not in opsets:
        raise InvalidData.at("model", msg=f"{label(node)}: the model imports no opset of {_STANDARD[domain]}")
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets[domain], domain)
    except onnx.defs.SchemaError:
        schema = None
    if schema is None or schema.deprecated:
        raise InvalidData.at(
            "model", msg=f"{label(node)}: {_STANDARD[domain]} opset {opsets[domain]} has no operator '{node.op_type}'"
        )


def _check_flow(graph: GraphProto, outer: frozenset[str]) -> None:
    """Every value is made once, before it is needed, by something that does not need it."""
    given = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    given |= {sparse.values.name for sparse in graph.sparse_initializer}
    makers: dict[str, int] = {}
    for at, node in enumerate(graph.node):
        for name in filter(None, node.output):
            if name in makers or name in given:
                raise InvalidData.at("model", msg=f"{label(node)} makes '{name}', which is made elsewhere too")
            makers[name] = at
    visible = outer | given | makers.keys()
    needs: dict[int, set[int]] = {}
    for at, node in enumerate(graph.node):
        reads = {*filter(None, node.input), *(name for inner in _inner(node) for name in _free(inner))}
        missing = next((name for name in sorted(reads) if name not in visible), None)
        if missing is not None:
            raise InvalidData.at("model", msg=f"{label(node)} reads '{missing}', which no node and no input makes")
        needs[at] = {makers[name] for name in reads if name in makers}
        for inner in _inner(node):
            _check_flow(inner, frozenset(visible))
    _check_order(graph, needs)
    for value in graph.output:
        if value.name not in visible:
            raise InvalidData.at("model", msg=f"the output '{value.name}' is made by no node")


def _check_order(graph: GraphProto, needs: Mapping[int, set[int]]) -> None:
    late = next((at for at, others in needs.items() if any(other >= at for other in others)), None)
    if late is None:
        return
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        around = ", ".join(label(graph.node[at]) for at in error.args[1][:5])
        raise InvalidData.at("model", msg=f"the graph has a cycle: {around}") from None
    raise InvalidData.at("model", msg=f"{label(graph.node[late])} comes before a node that it needs; sort the graph")


def _free(graph: GraphProto) -> set[str]:
    """Values that a nested graph takes from the graphs around it."""
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    own |= {name for node in graph.node for name in node.output}
    reads = {name for node in graph.node for name in (*node.input, *(n for g in _inner(node) for n in _free(g)))}
    reads |= {value.name for value in graph.output}
    return {name for name in reads if name} - own
