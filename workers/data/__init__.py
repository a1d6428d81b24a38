"""Readers of uploads: bytes that nobody has checked become a typed table and a profile of it."""
