"""HTTP of models."""
