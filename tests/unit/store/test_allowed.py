"""Which addresses may be fetched from."""

import pytest

from app.core.errors import InvalidSpec, Misconfigured
from app.settings import SourceSettings
from app.store.allowed import Allowed, parse_uri

LIST = "https://data.example.com/open, s3://lake/raw/, s3://all,https://10.1.2.3:8443/,http://127.0.0.1:9/"


@pytest.mark.parametrize(
    "uri",
    [
        "https://data.example.com/open",
        "https://DATA.example.com:443/open/a%20b.csv?token=x",
        "s3://lake/raw/2024/a.parquet",
        "s3://all/any key",
        "https://10.1.2.3:8443/x.csv",
        "http://127.0.0.1:9/x.csv",
    ],
)
def test_what_is_on_the_list_or_below_it(uri: str) -> None:
    assert Allowed(SourceSettings(allow=LIST)).check(uri.replace(" ", "%20"))


@pytest.mark.parametrize(
    ("uri", "word"),
    [
        ("https://data.example.com/opened/a.csv", "AIMASS_SOURCES_ALLOW"),
        ("https://data.example.com:444/open/a.csv", "AIMASS_SOURCES_ALLOW"),
        ("http://data.example.com/open/a.csv", "AIMASS_SOURCES_ALLOW"),
        ("https://evil.com/https://data.example.com/open", "AIMASS_SOURCES_ALLOW"),
        ("https://data.example.com.evil.com/open/a.csv", "AIMASS_SOURCES_ALLOW"),
        ("s3://lake/rawer/x", "AIMASS_SOURCES_ALLOW"),
        ("s3://other/raw/x", "AIMASS_SOURCES_ALLOW"),
        ("https://data.example.com/open/../secret", r"'\.\.'"),
        ("https://data.example.com/open/%2e%2e/secret", r"'\.\.'"),
        ("https://data.example.com/open/%2E%2E%2Fsecret", r"'\.\.'"),
        ("https://data.example.com@evil.com/open", "user name"),
        ("https://user:word@data.example.com/open/a", "user name"),
        ("https://data.example.com\\@evil.com/open", "backslashes"),
        ("https://data.example.com/open/\ta", "blanks"),
        ("https://dätä.example.com/open", "ASCII"),
        ("https://data.example.com/open#part", "after '#'"),
        ("https://[::1/open", "no address"),
        ("https://data.example.com/open/..;/a", "'.' or '..'"),
        ("https://data.example.com/open/%252e%252e/a", "'.' or '..'"),
        ("https://data.example.com/open/%5c..%5ca", "'.' or '..'"),
        ("https:///open", "host or bucket"),
        ("file:///etc/passwd", "https://"),
        ("ftp://data.example.com/open", "https://"),
        ("data.example.com/open", "https://"),
        ("s3://lake", "no object"),
        ("s3://lake/raw/x?versionId=1", "without port and query"),
    ],
)
def test_what_is_refused(uri: str, word: str) -> None:
    with pytest.raises(InvalidSpec, match=word) as caught:
        Allowed(SourceSettings(allow=LIST)).check(uri)
    assert caught.value.errors[0].loc == ("uri",)


def test_without_a_list_nothing_is_fetched() -> None:
    with pytest.raises(InvalidSpec, match="operator has to list hosts and buckets in AIMASS_SOURCES_ALLOW"):
        Allowed(SourceSettings()).check("https://data.example.com/a.csv")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.4",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",  # noqa: S104 - an address to be refused
        "224.0.0.1",
        "::1",
        "::ffff:10.0.0.1",
        "fe80::1%eth0",
        "fd00::1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "fec0::1",
        "::127.0.0.1",
        "::ffff:0:127.0.0.1",
        "192.0.0.8",
    ],
)
def test_private_addresses_are_not_connected_to_unless_they_are_named(address: str) -> None:
    assert not Allowed(SourceSettings(allow=LIST)).may_connect("data.example.com", address)


def test_what_may_be_connected_to() -> None:
    listed = Allowed(SourceSettings(allow=LIST, networks="10.0.0.0/8, fd00::/8"))
    assert Allowed(SourceSettings(allow=LIST)).may_connect("data.example.com", "93.184.215.14")
    assert Allowed(SourceSettings(allow=LIST)).may_connect("10.1.2.3", "10.1.2.3")
    assert listed.may_connect("data.example.com", "10.9.9.9")
    assert listed.may_connect("data.example.com", "fd00::1")
    assert not listed.may_connect("data.example.com", "192.168.1.1")


def test_what_a_query_holds_is_not_shown() -> None:
    shown = parse_uri("https://data.example.com/a.csv?X-Amz-Signature=abc&format=csv").shown
    assert shown == "https://data.example.com/a.csv?X-Amz-Signature=***&format=***"


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"allow": "data.example.com"}, "AIMASS_SOURCES_ALLOW: 'data.example.com' must begin with"),
        ({"allow": "https://u:p@data.example.com"}, "user name"),
        ({"networks": "10.0.0.0/33"}, "AIMASS_SOURCES_NETWORKS"),
    ],
)
def test_a_list_that_cannot_be_read(settings: dict[str, str], word: str) -> None:
    with pytest.raises(Misconfigured, match=word):
        Allowed(SourceSettings(**settings))
