"""Which addresses data may be fetched from: what the operator lists, and nothing else."""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from app.core.errors import InvalidSpec, Misconfigured
from app.settings import SourceSettings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
SETTING = "AIMASS_SOURCES_ALLOW"
_PORTS = {"https": 443, "http": 80, "s3": 0}
_FORM = "write https://HOST/PATH or s3://BUCKET/KEY"
_DECODED = 4  # times that a path is looked at, each decoded once more
_ODD = re.compile(r"[\s\\\x00-\x1f\x7f]|[^\x00-\x7f]")  # what two parsers may read in two ways
# Addresses that carry another one inside, by which a gateway of the network may reach what is private.
_CARRIERS = tuple(
    ipaddress.ip_network(text)
    for text in (
        "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16", "::/96", "::ffff:0:0:0/96", "fec0::/10",
        "192.0.0.0/24", "192.88.99.0/24",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Uri:
    """Where a source is. `host` is the bucket of an `s3` one, whose `port` is 0; `path` begins with `/`."""

    scheme: str
    host: str
    port: int
    path: str
    query: str = ""

    @property
    def filename(self) -> str:
        """The last part of the path, as a hint for messages."""
        name = unquote(self.path.rsplit("/", 1)[-1])
        return "".join(c for c in name if c.isprintable() and c not in "/\\")[:255] or "source"

    @property
    def key(self) -> str:
        """The object's key within its bucket; %XX is read as in every address."""
        return unquote(self.path.removeprefix("/"))

    @property
    def place(self) -> str:
        """Scheme, host and port, as they are listed."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + (f":{self.port}" if self.port != _PORTS[self.scheme] else "")

    @property
    def target(self) -> str:
        """What an HTTP request asks for."""
        return self.path + (f"?{self.query}" if self.query else "")

    @property
    def shown(self) -> str:
        """The address without what a query may hold: a signature or a token stays out of records and logs."""
        names = [name for name, _ in parse_qsl(self.query, keep_blank_values=True)]
        return self.place + self.path + ("?" + "&".join(f"{name}=***" for name in names) if names else "")


def parse_uri(text: str) -> Uri:
    """The address of a source. InvalidSpec names `uri` for anything that is none, or is not plain."""
    uri = _split(text)
    if uri.scheme == "s3" and not uri.key:
        raise _bad(f"names no object of the bucket; {_FORM}")
    return uri


def _split(text: str) -> Uri:
    if _ODD.search(text):
        raise _bad("has blanks, backslashes or letters that are not ASCII; write them as %XX")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise _bad(f"is no address ({error}); {_FORM}") from None
    if parts.scheme not in _PORTS or not host or port == 0:
        raise _bad(f"must begin with https:// or s3:// and a host or bucket; {_FORM}")
    if "@" in parts.netloc:
        raise _bad("must not hold a user name or password; use an address that needs none, such as a signed one")
    if parts.fragment or "#" in text:
        raise _bad("must not have a part after '#'; leave it out")
    if _leads_elsewhere(parts.path):
        raise _bad("must not have '.' or '..' in its path; write the path itself")
    if parts.scheme == "s3" and (port is not None or "?" in text):
        raise _bad("must be s3://BUCKET/KEY, without port and query")
    return Uri(parts.scheme, host, port or _PORTS[parts.scheme], parts.path or "/", parts.query)


def _leads_elsewhere(path: str) -> bool:
    """True if some server may read a part of the path as `.` or `..`: decoded twice, by backslashes, or up to a `;`."""
    for _ in range(_DECODED):
        if any(part.partition(";")[0] in {".", ".."} for part in re.split(r"[/\\]", path)):
            return True
        path = unquote(path)
    return "%2e" in path.lower()


def _bad(msg: str) -> InvalidSpec:
    return InvalidSpec.at("uri", msg=msg)


class Allowed:
    """The operator's list, and the networks beside the public ones that may be connected to."""

    def __init__(self, settings: SourceSettings) -> None:
        """Misconfigured if an entry cannot be read."""
        self._entries = [_entry(text) for text in _listed(settings.allow)]
        self._networks: Sequence[Network] = [_network(text) for text in _listed(settings.networks)]

    def check(self, text: str) -> Uri:
        """The address, if it is on the list. InvalidSpec names the setting otherwise."""
        uri = parse_uri(text)
        if not self._entries:
            raise _bad(f"this platform fetches no data; its operator has to list hosts and buckets in {SETTING}")
        if not self.holds(uri):
            raise _bad(f"'{uri.place}' with this path is not on the list of {SETTING}; ask the operator, or upload it")
        return uri

    def holds(self, uri: Uri) -> bool:
        """True for an address of the list, or below one."""
        return any(
            (uri.scheme, uri.host, uri.port) == (entry.scheme, entry.host, entry.port)
            and (uri.path == entry.path or uri.path.startswith(entry.path.rstrip("/") + "/"))
            for entry in self._entries
        )

    def may_connect(self, host: str, address: str) -> bool:
        """True for a public address, one that the list names itself, and those of the networks."""
        found = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped:
            found = found.ipv4_mapped
        if host in {entry.host for entry in self._entries} and host.lower() == str(found):
            return True
        if any(found.version == network.version and found in network for network in self._networks):
            return True
        carried = any(found.version == network.version and found in network for network in _CARRIERS)
        return found.is_global and not found.is_multicast and not carried


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _entry(text: str) -> Uri:
    try:
        return _split(text)
    except InvalidSpec as error:
        raise Misconfigured(f"{SETTING}: '{text}' {error.errors[0].msg}") from None


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise Misconfigured(f"AIMASS_SOURCES_NETWORKS: {error}; write 10.0.0.0/8") from None
