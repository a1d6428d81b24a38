"""From an address to a store."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from app.core.errors import Misconfigured
from app.settings import Settings
from app.store.local import LocalStore
from app.store.ports import Store


def open_store(settings: Settings) -> Store:
    """The store that the settings name. Misconfigured names the setting otherwise."""
    address = urlsplit(settings.store_url)
    if address.scheme == "file" and not address.netloc:
        return LocalStore(Path(unquote(address.path)))
    if address.scheme == "s3" and address.netloc:
        from app.store.s3 import S3Store  # noqa: PLC0415 - its client takes 4 MiB, for those who have a bucket alone

        return S3Store(
            address.netloc, address.path, endpoint=settings.store.s3_endpoint, region=settings.store.s3_region
        )
    raise Misconfigured(f"AIMASS_STORE_URL is '{settings.store_url}'; use file:///FOLDER or s3://BUCKET/PREFIX")
