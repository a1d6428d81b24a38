"""Documents the prediction paths in OpenAPI."""

from typing import Any


def document(openapi: dict[str, Any]) -> dict[str, Any]:
    """Add the prediction paths."""
    return openapi
