"""How rows of a data set become the tensors of an imported model, and its output an answer that labels can judge."""

from collections.abc import Sequence
from math import prod
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from app.core.errors import FieldError, InvalidSpec
from app.core.signature import Signature, Task, Tensor
from app.specs.base import NO_NUL, Spec

Text = Annotated[str, Field(pattern=NO_NUL)]
_CHANNELS = (1, 3)
_PICTURE_RANK = 4
_FLOATS = frozenset({"FP16", "BF16", "FP32", "FP64"})
_PICTURE_TYPES = _FLOATS | {"UINT8"}
PICTURES_TARGET = "label"


class TensorMapping(Spec):
    """One input of the model: `columns` of a table in the tensor's order, or how pictures are scaled.

    Pictures are resized to the tensor's height and width. A UINT8 tensor gets their bytes; any other gets
    `(byte / 255 - mean) / std`, with one mean and one std for each channel.
    """

    columns: Annotated[list[Text] | None, Field(min_length=1, max_length=100_000)] = None
    mean: Annotated[list[float], Field(max_length=3)] = []
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(max_length=3)] = []

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        if self.columns is not None and (self.mean or self.std):
            raise ValueError("columns are read as they are; mean and std are for pictures")
        return self


class Mapping(Spec):
    """What an imported model's tensors mean, so that a data set with labels can judge it."""

    task: Literal["classification", "regression"]
    target: Annotated[Text, Field(min_length=1, description="the column that holds the labels")] = PICTURES_TARGET
    inputs: Annotated[
        dict[Text, TensorMapping], Field(description="by input name; may be left out for a model of one picture tensor")
    ] = {}
    output: Annotated[Text | None, Field(description="the output that answers; default: the first")] = None
    classes: Annotated[
        list[Text] | None,
        Field(
            min_length=2, max_length=10_000,
            description="labels in the order of the output's columns; may be left out where they are 0, 1, 2 …",
        ),
    ] = None  # fmt: skip

    form: Annotated[
        Literal["probabilities", "logits"] | None,
        Field(description="of a classifier's output; default: told by its values, and said in the report"),
    ] = None

    @model_validator(mode="after")
    def _classes_are_told_apart(self) -> Self:
        if self.task == "regression" and (self.classes is not None or self.form is not None):
            raise ValueError("regression has no classes, and its output has no form; leave both out")
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            twice = next(label for label in self.classes if self.classes.count(label) > 1)
            raise ValueError(f"classes: '{twice}' is there twice")
        return self


def check_judging(mapping: Mapping | None, signature: Signature, kind: str, columns: Sequence[str]) -> None:
    """InvalidSpec, naming the field, unless a data set of these columns can judge a model.

    Args:
        mapping: of the job; None for a model that was trained here, whose signature names its columns.
        signature: of the model.
        kind: of the data set, `tabular` or `image`.
        columns: the data set's.
    """
    if mapping is not None:
        _check_mapping(mapping, signature, kind, columns)
        return
    wanted = "tabular" if signature.image is None else "image"
    if kind != wanted:
        raise InvalidSpec.at("dataset", msg=f"the model learned from {wanted} data, and this is {kind}")
    asked = [signature.target, *(column.name for column in signature.columns if column.type != "image")]
    if missing := [name for name in asked if name not in columns]:
        msg = f"the model needs columns that this data set does not have: {', '.join(missing)}"
        raise InvalidSpec.at("dataset", msg=msg, type="unknown_column")


def _check_mapping(mapping: Mapping, signature: Signature, kind: str, columns: Sequence[str]) -> None:
    errors = _check_names(mapping, signature)
    if kind == "image":
        errors += _check_pictures(mapping, signature)
    else:
        errors += _check_table(mapping, signature, columns)
    if errors:
        raise InvalidSpec(f"{'.'.join(map(str, errors[0].loc))}: {errors[0].msg}", errors=errors)


def picture_tensor(signature: Signature) -> Tensor | None:
    """The one input of a model that takes pictures, [N, 1 or 3, height, width]; None for any other model."""
    if len(signature.inputs) != 1:
        return None
    shape = signature.inputs[0].shape
    fits = len(shape) == _PICTURE_RANK and shape[1] in _CHANNELS and min(shape[2:]) > 0
    return signature.inputs[0] if fits and signature.inputs[0].datatype in _PICTURE_TYPES else None


def _check_names(mapping: Mapping, signature: Signature) -> list[FieldError]:
    inputs, outputs = [tensor.name for tensor in signature.inputs], [tensor.name for tensor in signature.outputs]
    errors = [
        FieldError(("mapping", "inputs", name), f"the model has no such input; it has: {', '.join(inputs)}")
        for name in mapping.inputs
        if name not in inputs
    ]
    errors += [
        FieldError(("version",), f"input '{t.name}' takes {t.shape[0]} rows a run; only rows by themselves are judged")
        for t in signature.inputs
        if t.shape and t.shape[0] > 1
    ]
    if mapping.output is not None and mapping.output not in outputs:
        errors.append(FieldError(("mapping", "output"), f"the model has no such output; it has: {', '.join(outputs)}"))
    elif mapping.classes is not None or mapping.task == "regression":  # else how many classes only the data says
        try:
            answering_tensor(signature, mapping.output, mapping.task, len(mapping.classes or ()))
        except InvalidSpec as error:
            errors += error.errors
    return errors


def answering_tensor(signature: Signature, asked: str | None, task: Task, n_classes: int) -> Tensor:
    """The output that answers: the one asked for, else the first of floats that fits.

    Raises:
        InvalidSpec: none fits; the shapes are named.
    """
    outputs = [tensor for tensor in signature.outputs if asked in {None, tensor.name}]
    fitting = [tensor for tensor in outputs if _answers(tensor, task, n_classes)]
    if not fitting:
        shapes = ", ".join(f"'{t.name}' {t.datatype} {list(t.shape)}" for t in outputs)
        wanted = (
            f"[-1, {n_classes}] of floats for {n_classes} classes" if task == "classification" else "one float a row"
        )
        msg = f"no output fits, which takes {wanted}: {shapes}; correct task, classes or output"
        raise InvalidSpec.at("mapping", "output", msg=msg)
    return fitting[0]


def _answers(tensor: Tensor, task: Task, n_classes: int) -> bool:
    if tensor.datatype not in _FLOATS:
        return False
    single = len(tensor.shape) == 1 or tensor.shape[1:] == (1,)
    if task == "regression":
        return single
    return (single and n_classes == 2) or (len(tensor.shape) == 2 and tensor.shape[1] in {-1, n_classes})  # noqa: PLR2004 - binary, rank


def _check_pictures(mapping: Mapping, signature: Signature) -> list[FieldError]:
    errors = []
    if mapping.target != PICTURES_TARGET:
        errors.append(FieldError(("mapping", "target"), f"picture data sets have the target '{PICTURES_TARGET}'"))
    tensor = picture_tensor(signature)
    if tensor is None:
        msg = "pictures fill a model of one UINT8 or float input [N, 1 or 3, height, width]; this model is another"
        return [*errors, FieldError(("dataset",), msg)]
    given = mapping.inputs.get(tensor.name, TensorMapping())
    if given.columns is not None:
        msg = "the data set holds pictures; give mean and std, or nothing"
        errors.append(FieldError(("mapping", "inputs", tensor.name, "columns"), msg))
    for name in ("mean", "std"):
        values = getattr(given, name)
        if values and tensor.datatype == "UINT8":
            msg = "a UINT8 input gets the bytes as they are; leave it out"
            errors.append(FieldError(("mapping", "inputs", tensor.name, name), msg))
        elif values and len(values) != tensor.shape[1]:
            msg = f"must be {tensor.shape[1]} numbers, one for each channel"
            errors.append(FieldError(("mapping", "inputs", tensor.name, name), msg))
    return errors


def _check_table(mapping: Mapping, signature: Signature, columns: Sequence[str]) -> list[FieldError]:
    known = set(columns)
    errors = []
    if mapping.target not in known:
        errors.append(FieldError(("mapping", "target"), f"there is no column '{mapping.target}'", "unknown_column"))
    for tensor in signature.inputs:
        loc = ("mapping", "inputs", tensor.name, "columns")
        given = mapping.inputs.get(tensor.name, TensorMapping()).columns
        if given is None:
            errors.append(FieldError(loc, "is required: the data set's columns that fill this tensor, in its order"))
            continue
        errors += [
            FieldError((*loc, at), f"there is no column '{name}'", "unknown_column")
            for at, name in enumerate(given)
            if name not in known
        ]
        errors += [
            FieldError((*loc, at), "is the target; a model that sees it is not judged by it")
            for at, name in enumerate(given)
            if name == mapping.target
        ]
        if not _fills(tensor, len(given)):
            errors.append(FieldError(loc, f"{len(given)} columns do not fill a row of shape {list(tensor.shape[1:])}"))
    return errors


def row_shape(tensor: Tensor, count: int) -> tuple[int, ...]:
    """The shape of a row that `count` columns fill; a single variable axis takes what is left."""
    axes = tensor.shape[1:]
    return tuple(count // max(1, prod(size for size in axes if size > 0)) if size < 0 else size for size in axes)


def _fills(tensor: Tensor, count: int) -> bool:
    return sum(size < 0 for size in tensor.shape[1:]) <= 1 and prod(row_shape(tensor, count)) == count
