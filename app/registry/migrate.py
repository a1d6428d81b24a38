"""Bring the registry's schema up to date: Alembic under an advisory lock, safe to start from every process."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy.exc import DBAPIError

import migrations
from app.core.errors import Misconfigured
from app.registry.session import async_url


def alembic_config(url: str) -> Config:
    """Alembic's configuration without a file, so that an installed package can migrate too."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["url"] = async_url(url)
    return config


def upgrade(url: str) -> None:
    """Run every migration that is missing. Call it where no event loop runs. Misconfigured if nobody answers there."""
    try:
        command.upgrade(alembic_config(url), "head")
    except (OSError, DBAPIError) as error:
        why = str(getattr(error, "orig", error))
        raise Misconfigured(f"the registry cannot be brought up to date (AIMASS_DATABASE_URL): {why}") from error
