"""Sources in S3 buckets, or in anything that speaks S3."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store as Bucket

from app.core.errors import InvalidData, Unavailable
from app.settings import SourceSettings
from app.store.allowed import Uri
from app.store.ports import Source
from app.store.s3 import RETRY, RETRY_AFTER_S

if TYPE_CHECKING:
    from obstore import GetResult
    from obstore.store import ClientConfig, S3Config

_REASON = 300  # characters of an error that are shown


@asynccontextmanager
async def open_s3(uri: Uri, settings: SourceSettings) -> AsyncIterator[Source]:
    """The object. InvalidData names `uri` if it is not there or not ours; Unavailable if the server does not answer."""
    bucket = _bucket(uri.host, settings)
    with _asking():
        answer = await obstore.get_async(bucket, uri.key)
    meta = answer.meta
    yield Source(meta["size"], meta["e_tag"], meta["last_modified"].isoformat(), _chunks(answer))


def _bucket(name: str, settings: SourceSettings) -> Bucket:
    config: S3Config = {}
    if settings.s3_endpoint:
        config |= {"endpoint": settings.s3_endpoint, "virtual_hosted_style_request": False}
    if settings.s3_access_key_id:
        config |= {
            "access_key_id": settings.s3_access_key_id,
            "secret_access_key": settings.s3_secret_access_key.get_secret_value(),
        }
    options: ClientConfig = {"allow_http": settings.s3_endpoint.startswith("http://")}
    return Bucket(name, region=settings.s3_region, config=config, client_options=options, retry_config=RETRY)


async def _chunks(answer: "GetResult") -> AsyncIterator[bytes]:
    with _asking():
        async for chunk in answer.stream():
            yield bytes(chunk)


@contextmanager
def _asking() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InvalidData.at("uri", msg="there is no such object or bucket; correct the address") from None
    except (PermissionDeniedError, UnauthenticatedError):
        msg = "may not be read with this platform's key (AIMASS_SOURCES_S3_ACCESS_KEY_ID); ask the operator"
        raise InvalidData.at("uri", msg=msg) from None
    except BaseError as error:
        reason = str(error).partition("\n")[0][:_REASON]  # pages of debug text follow
        raise Unavailable(
            f"uri: the bucket does not answer (AIMASS_SOURCES_S3_ENDPOINT): {reason}", retry_after_s=RETRY_AFTER_S
        ) from None
