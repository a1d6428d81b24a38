"""The feature recipe: steps fitted on training rows, each a piece of the graph."""
