"""What takes an imported model's place: a student with its inputs and outputs, labels included."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import compose, helper

from app.core.signature import Signature, Task, Tensor
from workers.compression.graphs import Model
from workers.compression.material import Material
from workers.evaluation.answers import Answering
from workers.export.graph import Graph
from workers.export.runtime import open_session, predict
from workers.learning import Array, take

RANK = 2  # of rows of numbers
_FLOATS: dict[str, int] = {
    "FP16": onnx.TensorProto.FLOAT16, "FP32": onnx.TensorProto.FLOAT, "FP64": onnx.TensorProto.DOUBLE,
}  # fmt: skip
_LABELS = frozenset({"INT32", "INT64", "BYTES"})
_PICTURE_RANK = 4
_AGREE = 0.99  # of the rows are told the class that is likeliest
_LOOKED_AT = 10_000  # rows that say which label is which class
_LEAST = 1e-7  # probability that has a logarithm
Reading = Callable[[Graph, str], str]  # nodes from the tensor as it is sent to what the student reads


def is_told(signature: Signature, answering: Answering, task: Task) -> bool:
    """Whether everything that is answered to a batch of rows follows from classes or values."""
    told = all(
        tensor.datatype in _FLOATS
        if tensor.name == answering.output
        else task == "classification" and tensor.datatype in _LABELS and tensor.shape in {(-1,), (-1, 1)}
        for tensor in signature.outputs
    )
    return signature.batched and bool(signature.inputs) and told


def kind_of(tensor: Tensor) -> str:
    """The input of a student that reads it: `categorical`, `image` or `numeric`."""
    if tensor.datatype == "BYTES":
        return "categorical"
    return "image" if len(tensor.shape) == _PICTURE_RANK else "numeric"


def labels_told(material: Material, rows: Array, answers: Array) -> dict[str, Array]:
    """What the full model tells where each class is the likeliest, [K], by each output of labels.

    Args:
        material: with the full model.
        rows: of the data set.
        answers: the full model's to these rows: probabilities [N, K], or values [N] of a model that tells no labels.

    Raises:
        ValueError: it is not known which label is told for a class.
    """
    outputs = [one for one in material.prepared.signature.outputs if one.name != material.judge.answering.output]
    return {tensor.name: _labels(material, tensor, rows[:_LOOKED_AT], answers[:_LOOKED_AT]) for tensor in outputs}


def in_its_place(student: Model, material: Material, labels: Mapping[str, Array], read: Reading | None = None) -> Model:
    """The student with the inputs and outputs of the full model, in their types.

    Args:
        student: whose inputs are called as `kind_of` does, and whose one output is probabilities or values.
        material: with the full model.
        labels: as `labels_told` has them.
        read: how an input becomes the student's; as numbers [N, n] or texts, if it is not said.
    """
    signature, graph = material.prepared.signature, Graph()
    names = {tensor.name: f"x{at}" for at, tensor in enumerate(signature.inputs)}
    names |= {tensor.name: f"y{at}" for at, tensor in enumerate(signature.outputs)}
    parts: dict[str, list[str]] = {}
    for tensor in signature.inputs:
        name = names[tensor.name]
        parts.setdefault(kind_of(tensor), []).append(read(graph, name) if read else _columns(graph, tensor, name))
    inputs = {kind: graph.add("Concat", *some, axis=1) if len(some) > 1 else some[0] for kind, some in parts.items()}
    told = graph.include(student, "student", inputs)
    for tensor in signature.outputs:
        answer = _answer(graph, tensor, told, material.judge.answering, labels)
        shape = [-1] if len(tensor.shape) < RANK else [0, -1]  # as many rows as it has, and what is left
        graph.add("Reshape", answer, graph.constant(shape, np.int64), output=names[tensor.name])
    ends = [
        [Tensor(names[tensor.name], tensor.datatype, tensor.shape) for tensor in tensors]
        for tensors in (signature.inputs, signature.outputs)
    ]
    made = graph.model(*ends)
    helper.set_model_props(made, {entry.key: entry.value for entry in student.metadata_props})
    return _renamed(made, {mine: theirs for theirs, mine in names.items()})


def _columns(graph: Graph, tensor: Tensor, name: str) -> str:
    """The tensor as [N, n]; numbers as FP32."""
    if len(tensor.shape) < RANK:
        name = graph.add("Reshape", name, graph.constant([-1, 1], np.int64))
    if tensor.datatype in {"FP32", "BYTES"}:
        return name
    return graph.add("Cast", name, to=onnx.TensorProto.FLOAT)


def _answer(graph: Graph, tensor: Tensor, told: str, answering: Answering, labels: Mapping[str, Array]) -> str:
    """What this output says, from the student's probabilities [N, K] or values [N]."""
    if (known := labels.get(tensor.name)) is not None:
        likeliest = graph.add("ArgMax", told, axis=1, keepdims=0)
        return graph.add("Gather", graph.constant(known, known.dtype), likeliest)
    answer = told
    if answering.form in {"logits", "logit"}:
        answer = graph.add("Log", graph.add("Max", told, graph.constant(_LEAST, np.float32)))
    if answering.form in {"probability", "logit"}:
        first, second = (graph.add("Gather", answer, graph.constant([at], np.int64), axis=1) for at in (0, 1))
        answer = second if answering.form == "probability" else graph.add("Sub", second, first)
    return answer if tensor.datatype == "FP32" else graph.add("Cast", answer, to=_FLOATS[tensor.datatype])


def _labels(material: Material, tensor: Tensor, rows: Array, answers: Array) -> Array:
    session, inputs = open_session(material.model, material.threads), material.prepared.inputs
    said = [predict(session, take(inputs, part), material.batch, tensor.name) for part in material.parts(rows)]
    labels = np.concatenate(said).reshape(-1)
    likeliest, found = answers.argmax(axis=1), []
    for index in range(answers.shape[1]):
        values, counts = np.unique(labels[likeliest == index], return_counts=True)
        if not len(values):
            raise ValueError(f"no row is of class {index} to the full model: what '{tensor.name}' tells is not known")
        found.append(values[counts.argmax()])
    known = np.asarray(found, object if tensor.datatype == "BYTES" else labels.dtype)
    if (agree := float((known[likeliest] == labels).mean())) < _AGREE:
        raise ValueError(f"'{tensor.name}' tells the likeliest class of {agree:.0%} of the rows only")
    return known


def _renamed(model: Model, names: Mapping[str, str]) -> Model:
    """With inputs and outputs of these names, which no other value can have."""
    prefix = "student/"
    made: Model = compose.add_prefix(model, prefix)
    to = {prefix + mine: theirs for mine, theirs in names.items()}
    for value in (*made.graph.input, *made.graph.output):
        value.name = to[value.name]
    for node in made.graph.node:
        node.input[:] = [to.get(name, name) for name in node.input]
        node.output[:] = [to.get(name, name) for name in node.output]
    onnx.checker.check_model(made)
    return made
