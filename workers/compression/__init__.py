"""Smaller and faster variants of a model, each measured on this host before it is accepted."""
