"""The base of every spec: unknown fields are an error, values are immutable, numbers are finite."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag

from app.core.errors import FieldError

# Names appear in URLs, file names and metric labels, so they are narrow. `/` would break unquoted path segments of
# Open Inference Protocol clients.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
NAME_RULE = "must be 1-100 letters, digits, '.', '_' or '-', beginning with a letter or digit"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
MAX_VERSION = 2**31 - 1  # what the registry's integer column holds
VersionNumber = Annotated[int, Field(ge=1, le=MAX_VERSION)]
NO_NUL = r"^[^\x00]*$"  # PostgreSQL keeps no NUL in text
VISIBLE = r"^[^\x00]*[^\s\x00][^\x00]*$"
_RULES = {
    NAME_PATTERN: NAME_RULE,
    NO_NUL: "must not hold a NUL character",
    VISIBLE: "must hold a visible character, and no NUL character",
}

_CHOICE = "one of: "


def _form(value: Any) -> str:  # noqa: ANN401 - whatever was sent
    return f"{_CHOICE}object" if isinstance(value, Mapping | BaseModel) else f"{_CHOICE}other"


# A field that is an object or something simpler: `Annotated[Annotated[X, OBJECT] | Annotated[Y, OTHER], CHOICE]`.
# Errors are those of the form that was sent, at the field itself.
OBJECT, OTHER, CHOICE = Tag(f"{_CHOICE}object"), Tag(f"{_CHOICE}other"), Discriminator(_form)


class Spec(BaseModel):
    """A validated part of a request."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_max_length=10_000)


def field_error(found: Mapping[str, Any]) -> FieldError:
    """One entry of pydantic's `errors()`, in words that say what to do."""
    loc = tuple(part for part in found["loc"] if not str(part).startswith(_CHOICE))
    msg, kind, context = str(found["msg"]), str(found["type"]), found.get("ctx", {})
    if kind == "extra_forbidden":
        msg = "there is no such field; remove it or correct its name"
    elif kind == "missing":
        msg = "is required"
    elif kind == "dict_type":
        msg = "must be a JSON object"
    elif kind == "string_pattern_mismatch":
        msg = _RULES.get(context["pattern"], msg)
    elif kind == "union_tag_not_found":
        loc, msg = (*loc, context["discriminator"].strip("'")), "is required"
    elif kind == "union_tag_invalid":
        loc, msg = (*loc, context["discriminator"].strip("'")), f"must be one of: {context['expected_tags']}"
    return FieldError(loc, msg.removeprefix("Value error, "), kind)
