"""A changed byte anywhere in a manifest, or a key that is not trusted, is refused."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.errors import Corrupt, Misconfigured
from app.store.signing import SigningKey, verify

SUBJECT = {"model": "m", "job": "j"}
FILES = {"model.onnx": "a" * 64, "größe.json": "b" * 64}


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return SigningKey(tmp_path_factory.mktemp("keys") / "deep" / "signing.key")


@pytest.fixture(scope="module")
def signed(key: SigningKey) -> tuple[bytes, str]:
    raw = key.sign(SUBJECT, FILES)
    public = key.public()
    assert public is not None
    return raw, public


def test_what_was_signed_is_read(signed: tuple[bytes, str]):
    raw, public = signed
    manifest = verify(raw, [public])
    assert (manifest.subject, manifest.files) == (SUBJECT, FILES)


def test_the_form_of_the_file_does_not_matter(signed: tuple[bytes, str]):
    raw, public = signed
    assert verify(json.dumps(json.loads(raw)).encode(), [public]).files == FILES


@given(st.data())
def test_a_changed_byte_is_refused(signed: tuple[bytes, str], data: st.DataObject):
    raw, public = signed
    at = data.draw(st.integers(0, len(raw) - 1))
    changed = raw[:at] + bytes([raw[at] ^ data.draw(st.integers(1, 255))]) + raw[at + 1 :]
    try:
        meaning = json.loads(changed)
    except ValueError:
        meaning = None
    if meaning == json.loads(raw):  # blanks between the parts, say
        return
    with pytest.raises(Corrupt):
        verify(changed, [public])


def test_another_key_is_refused(signed: tuple[bytes, str], tmp_path: Path):
    other = SigningKey(tmp_path / "other.key")
    with pytest.raises(Corrupt, match="AIMASS_SIGNING_TRUSTED_KEYS"):
        verify(other.sign(SUBJECT, FILES), [signed[1]])


def test_the_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path):
    path = tmp_path / "signing.key"
    assert SigningKey(path).public() is None
    SigningKey(path).sign(SUBJECT, FILES)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["signing.key"]
    assert SigningKey(path).public() == SigningKey(path).public()


def test_a_file_that_is_no_key_names_the_setting(tmp_path: Path):
    path = tmp_path / "signing.key"
    path.write_text("nothing")
    with pytest.raises(Misconfigured, match="AIMASS_SIGNING_KEY_FILE"):
        SigningKey(path).sign(SUBJECT, FILES)
