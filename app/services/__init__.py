"""Use cases: one verb a file. Ports and sessions come in as arguments."""
