"""One way to log: a line of time, level, logger and message on standard error."""

import logging
import sys
import time


def configure_logging(level: str) -> None:
    """Send every logger to standard error, times in UTC."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("alembic", "httpx", "aiosqlite", "asyncio"):
        logging.getLogger(noisy).setLevel("WARNING")
