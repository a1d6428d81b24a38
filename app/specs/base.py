"""The base of every spec: unknown fields are an error, values are immutable, numbers are finite."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

# Names appear in URLs, file names and metric labels, so they are narrow. `/` would break unquoted path segments of
# Open Inference Protocol clients.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class Spec(BaseModel):
    """A validated part of a request."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_max_length=10_000)
