"""The registry: tables never leave this room; repositories take a session and return core objects."""
