"""See at the start of a process that its settings can work, rather than when the first job needs them."""

from app.core.errors import Misconfigured
from app.services.sign_files import signing_key
from app.settings import Settings
from app.store.allowed import Allowed
from app.store.signing import check_public_key


def check_settings(settings: Settings) -> None:
    """Misconfigured names the first setting that is wrong. Addresses are checked where they are opened."""
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise Misconfigured(f"AIMASS_DATA_DIR={settings.data_dir} cannot be made: {error.strerror}") from None
    signing_key(settings).public()
    for key in settings.signing.trusted():
        check_public_key(key)
    Allowed(settings.sources)
