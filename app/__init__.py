"""AI Mass: the application without its heavy parts."""

from importlib.metadata import version

__version__ = version("aimass")
