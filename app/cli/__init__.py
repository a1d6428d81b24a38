"""`aimass …`: the launcher, and a client of the public API."""
