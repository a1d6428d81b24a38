"""Files that are fetched from real servers, by HTTP, TLS and S3, into a data set version."""

import asyncio
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from sqlalchemy import text

from app.core.errors import AimassError, InvalidData, PayloadTooLarge, TimedOut, Unavailable
from app.core.jobs import JobFailure, Lease
from app.core.principal import Principal
from app.core.resources import DatasetVersion
from app.registry.datasets import DatasetReader, DatasetWriter
from app.registry.ledger import SqlLedger
from app.services.fetch_source import fetch_source
from app.services.idempotent import once
from app.services.keep_files import InputAway
from app.services.platform import Platform
from app.services.upload_dataset import fetch_dataset
from app.settings import GatewaySettings, Settings, SourceSettings
from tests.support.file_server import FileServer
from tests.support.s3 import S3Server

DATA = b"a,b\n" + b"".join(b"%d,%d\n" % (i, i * i) for i in range(300_000))  # some MiB
REQUEST = once(Principal("key", "tests", frozenset({"train"})), None, "", None)


@pytest.fixture(scope="module")
def server() -> Iterator[FileServer]:
    running = FileServer(DATA)
    yield running
    running.close()


@pytest.fixture
def listed(platform: Platform, server: FileServer) -> Callable[..., Platform]:
    """The platform with a list, which holds the server and a bucket, unless another one is given."""

    def with_list(allow: str = f"{server.url}/, s3://bucket", limit_mb: int = 8, **sources: Any) -> Platform:
        settings = Settings(
            data_dir=platform.settings.data_dir,
            sources=SourceSettings(allow=allow, **sources),
            gateway=GatewaySettings(max_upload_mb=limit_mb),
        )
        return Platform(settings, platform.database, platform.wake, platform.store)

    return with_list


async def queue(platform: Platform, uri: str) -> DatasetVersion:
    return await fetch_dataset(platform, REQUEST, "table", "auto", uri)


async def claim(platform: Platform, version: DatasetVersion) -> Lease:
    lease = await SqlLedger(platform.database).claim(version.job_id or "", "worker", 30.0)
    assert lease is not None
    return lease


async def fetch(platform: Platform, uri: str) -> DatasetVersion:
    """As a worker does it; the version afterwards."""
    version = await queue(platform, uri)
    await fetch_source(platform, await claim(platform, version))
    return await now(platform, version)


async def now(platform: Platform, version: DatasetVersion) -> DatasetVersion:
    async with platform.database.read() as session:
        return await DatasetReader(session).version(version.name, version.version)


def left(platform: Platform) -> list[Path]:
    return [path for path in (platform.settings.data_dir / "store").rglob("*") if path.is_file()]


async def test_a_file_comes_with_its_digest_and_its_origin(listed: Callable[..., Platform], server: FileServer) -> None:
    platform = listed()
    version = await fetch(platform, f"{server.url}/to//data/a.csv?token=secret")
    assert server.asked[-2:] == ["/to//data/a.csv?token=secret", "/data/a.csv"]
    assert (version.state, version.filename, version.bytes) == ("ingesting", "a.csv", len(DATA))
    assert version.source is not None
    assert version.source["uri"] == f"{server.url}/to//data/a.csv?token=***"
    assert version.source["etag"] == '"v1"'
    stored = b"".join([chunk async for chunk in platform.store.read(version.sha256)])
    assert stored == DATA
    async with platform.database.read() as session:
        rows = list(await session.execute(text("SELECT * FROM dataset_versions JOIN jobs ON job_id = jobs.id")))
        assert "secret" not in str(rows)


@pytest.mark.parametrize(
    ("path", "error", "word"),
    [
        ("/status/404", InvalidData, "404; correct the address"),
        ("/status/302", InvalidData, "302 and no address"),
        ("/status/403", InvalidData, "open or signed"),
        ("/status/503", InputAway, "503"),
        ("/empty.csv", InvalidData, "is empty"),
        ("/short.csv", InputAway, "cannot be read now"),
        ("/lie.csv", PayloadTooLarge, "AIMASS_GATEWAY_MAX_UPLOAD_MB"),
        ("/endless.csv", PayloadTooLarge, "AIMASS_GATEWAY_MAX_UPLOAD_MB"),
        ("/to/http://169.254.169.254/latest", InvalidData, "redirects to another address.*AIMASS_SOURCES_ALLOW"),
        ("/to/file:///etc/passwd", InvalidData, "redirects to another address"),
        ("/to/http://[::1", InvalidData, "redirects to what is no address"),
        ("/to/s3://bucket/a.csv", InvalidData, "redirects to a bucket"),
        ("/to//to//to//to//to//to//a.csv", InvalidData, "redirects more than 5 times"),
    ],
)
async def test_what_cannot_be_fetched(
    listed: Callable[..., Platform], server: FileServer, path: str, error: type[AimassError], word: str
) -> None:
    platform = listed(limit_mb=3)
    with pytest.raises(error, match=word):
        await fetch(platform, server.url + path)
    assert left(platform) == []


async def test_a_name_of_a_private_address_is_refused_unless_its_network_is_listed(
    listed: Callable[..., Platform], server: FileServer
) -> None:
    uri, before = f"http://localhost:{server.port}/a.csv", len(server.asked)
    with pytest.raises(InvalidData, match=r"private network.*AIMASS_SOURCES_NETWORKS"):
        await fetch(listed(allow=f"http://localhost:{server.port}/"), uri)
    assert len(server.asked) == before
    version = await fetch(listed(allow=f"http://localhost:{server.port}/", networks="127.0.0.0/8,::1/128"), uri)
    assert version.bytes == len(DATA)


async def test_our_own_store_is_not_taken_for_the_source(listed: Callable[..., Platform], server: FileServer) -> None:
    platform = listed()
    (platform.settings.data_dir / "store" / "tmp").rmdir()
    with pytest.raises(Unavailable, match="AIMASS_STORE_URL") as raised:
        await fetch(platform, f"{server.url}/a.csv")
    assert not isinstance(raised.value, InputAway)


async def test_a_server_that_stalls_is_given_up_and_nothing_stays(
    listed: Callable[..., Platform], server: FileServer
) -> None:
    platform = listed(timeout_s=0.3)
    with pytest.raises(TimedOut, match="AIMASS_SOURCES_TIMEOUT_S"):
        await fetch(platform, f"{server.url}/slow.csv")
    assert left(platform) == []


async def test_an_attempt_that_lost_its_lease_writes_nothing_and_the_next_one_fetches(
    listed: Callable[..., Platform], server: FileServer
) -> None:
    platform = listed()
    version = await queue(platform, f"{server.url}/a.csv?key=1")
    lost = await claim(platform, version)
    await SqlLedger(platform.database).release(lost.job_id, lost.attempt)
    await fetch_source(platform, lost)
    assert (await now(platform, version)).sha256 == ""
    await fetch_source(platform, await claim(platform, version))
    found, asked = await now(platform, version), len(server.asked)
    assert (found.bytes, [file.path for file in found.files]) == (len(DATA), ["original"])
    await fetch_source(platform, lost)  # it is here: nobody asks again
    assert len(server.asked) == asked


async def test_a_version_that_fails_forgets_its_secrets_and_one_that_is_deleted_stays_so(
    listed: Callable[..., Platform], server: FileServer
) -> None:
    platform = listed()
    version = await queue(platform, f"{server.url}/a.csv?key=secret")
    lease = await claim(platform, version)
    await SqlLedger(platform.database).fail(lease.job_id, lease.attempt, JobFailure("x", "y"), 0.0)
    async with platform.database.read() as session:
        assert await DatasetReader(session).to_fetch(lease.job_id) is None
    second = await queue(platform, f"{server.url}/slow.csv")
    fetching = asyncio.create_task(fetch_source(platform, await claim(platform, second)))
    await asyncio.to_thread(server.stalls.wait, 10)
    async with platform.database.write() as session:
        await DatasetWriter(session).delete("table", second.version, detach=False)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert left(platform) == []


def certificate(folder: Path) -> Path:
    """A self-signed one of `localhost`, with its key, in one PEM file."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "localhost.pem"
    file.write_bytes(
        made.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return file


async def test_certificates_are_checked(
    listed: Callable[..., Platform], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    server = FileServer(DATA, context)
    try:
        uri = f"https://localhost:{server.port}/a.csv"
        platform = listed(allow=uri, networks="127.0.0.0/8,::1/128")
        with pytest.raises(Unavailable, match="certificate verify failed"):
            await fetch(platform, uri)
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        assert (await fetch(platform, uri)).bytes == len(DATA)
    finally:
        server.close()


async def test_an_object_of_a_bucket(listed: Callable[..., Platform], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    server = S3Server()
    try:
        bucket = server.bucket(**{"raw/some täble.csv": DATA})
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        platform = listed(
            allow=f"s3://{bucket}/raw",
            s3_endpoint=server.endpoint,
            s3_access_key_id="reader",
            s3_secret_access_key="secret",
        )
        version = await fetch(platform, f"s3://{bucket}/raw/some%20t%C3%A4ble.csv")
        assert (version.bytes, version.filename) == (len(DATA), "some täble.csv")
        assert version.source is not None
        assert version.source["etag"]
        with pytest.raises(InvalidData, match="no such object"):
            await fetch(platform, f"s3://{bucket}/raw/nothing.csv")
        with pytest.raises(PayloadTooLarge):
            await fetch(
                listed(
                    f"s3://{bucket}",
                    1,
                    s3_endpoint=server.endpoint,
                    s3_access_key_id="reader",
                    s3_secret_access_key="secret",
                ),
                f"s3://{bucket}/raw/some%20t%C3%A4ble.csv",
            )
    finally:
        server.kill()
