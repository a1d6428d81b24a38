"""Manifests: which files a folder holds, by digest, signed with Ed25519 (RFC 8032).

    {"version": 1, "subject": {…}, "files": {path: sha256}, "key": public key, "signature": …}

The signature is over the canonical JSON (sorted keys, no blanks) of everything but itself. Keys and signatures are
base64.
"""

import base64
import binascii
import contextlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from app.core.errors import Corrupt, Misconfigured
from app.core.version_folder import MANIFEST

MANIFEST_VERSION = 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest whose signature is good: what it is about, and the digest of each file."""

    subject: dict[str, Any]
    files: dict[str, str]


class SigningKey:
    """The private key in `path`, made there the first time that it is needed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def sign(self, subject: Mapping[str, Any], files: Mapping[str, str]) -> bytes:
        """A manifest's bytes. Misconfigured if the key cannot be read."""
        key = self._load()
        body = {"version": MANIFEST_VERSION, "subject": dict(subject), "files": dict(files), "key": _public_text(key)}
        signature = base64.b64encode(key.sign(_canonical(body))).decode()
        return json.dumps({**body, "signature": signature}, indent=1, sort_keys=True).encode()

    def public(self) -> str | None:
        """The public half, if there is a key already. Misconfigured if it cannot be read."""
        return _public_text(self._load()) if self._path.exists() else None

    def _load(self) -> Ed25519PrivateKey:
        if not self._path.exists():
            self._make()
        try:
            key = load_pem_private_key(self._path.read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise Misconfigured(
                f"AIMASS_SIGNING_KEY_FILE={self._path} cannot be read as a private key: {error}"
            ) from None
        if not isinstance(key, Ed25519PrivateKey):
            raise Misconfigured(f"AIMASS_SIGNING_KEY_FILE={self._path} holds no Ed25519 key")
        return key

    def _make(self) -> None:
        """Written aside and linked into place: of two processes that start at once, both use the first one's key."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Misconfigured(f"AIMASS_SIGNING_KEY_FILE={self._path} cannot be made: {error.strerror}") from None
        pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        aside = self._path.with_name(f".{self._path.name}-{secrets.token_hex(8)}")
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(aside, self._path)
        aside.unlink()


def check_public_key(text: str) -> None:
    """Misconfigured unless `text` is an Ed25519 public key in base64."""
    try:
        Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
    except (ValueError, binascii.Error):
        raise Misconfigured(f"AIMASS_SIGNING_TRUSTED_KEYS: '{text}' is no Ed25519 public key in base64") from None


def verify(raw: bytes, trusted: Iterable[str]) -> Manifest:
    """The manifest in `raw`, signed by one of the `trusted` public keys. Corrupt otherwise."""
    try:
        body = json.loads(raw)
        signature = base64.b64decode(body.pop("signature"), validate=True)
        key, version = body["key"], body["version"]
        manifest = Manifest(body["subject"], body["files"])
        public = Ed25519PublicKey.from_public_bytes(base64.b64decode(key, validate=True))
    except (ValueError, LookupError, TypeError, AttributeError, binascii.Error):
        raise Corrupt(f"{MANIFEST} is not a signed manifest") from None
    if version != MANIFEST_VERSION:
        raise Corrupt(f"{MANIFEST} has version {version!r}; this release reads {MANIFEST_VERSION}")
    if key not in set(trusted):
        raise Corrupt(f"{MANIFEST} is signed by a key that is not trusted here (AIMASS_SIGNING_TRUSTED_KEYS): {key}")
    try:
        public.verify(signature, _canonical(body))
    except InvalidSignature:
        raise Corrupt(f"{MANIFEST} was changed after it was signed") from None
    return manifest


def _public_text(key: Ed25519PrivateKey) -> str:
    return base64.b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


def _canonical(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
