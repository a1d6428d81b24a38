"""HTTP: one folder a resource. Thin: parse, call one service, return."""
