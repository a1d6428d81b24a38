"""Opens a source of the operator's list, whichever protocol it speaks."""

from contextlib import AbstractAsyncContextManager

from app.settings import SourceSettings
from app.store.allowed import Allowed
from app.store.ports import Source
from app.store.source_http import open_http
from app.store.source_s3 import open_s3


def open_source(settings: SourceSettings, uri: str) -> AbstractAsyncContextManager[Source]:
    """The source at `uri`, while the context lasts.

    InvalidSpec for an address that is not on the list; InvalidData names `uri` where asking again is of no use, and
    Unavailable is for what may go better later.
    """
    allowed = Allowed(settings)
    found = allowed.check(uri)
    return open_s3(found, settings) if found.scheme == "s3" else open_http(found, allowed)
