"""One file a model family: fit, then export."""
