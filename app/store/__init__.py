"""The store: files by the SHA-256 of their content, streamed both ways, written whole or not at all."""
