"""Where an NBD export is: the URIs that all NBD tools use.

https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md
"""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from backy.errors import ConfigError

_SCHEMES = ("nbd", "nbds", "nbd+unix", "nbds+unix")
_PARAMETERS = {"socket", "tls-certificates", "tls-hostname"}
_LONGEST_NAME = 4096  # bytes of an export's name; the protocol's limit of strings


@dataclass(frozen=True, slots=True)
class Address:
    """The address of an export. `text` is the URI as it was written; messages show it.

    `where` is the path of a socket on this machine, or host and port. `certificates` is a folder
    with ca-cert.pem and, for servers that ask for them, client-cert.pem and client-key.pem;
    without it, the authorities that this machine trusts apply. `tls_name` is the name that the
    server's certificate must have; "" where the connection is not encrypted.
    """

    text: str
    export: str
    where: str | tuple[str, int]
    certificates: Path | None
    tls_name: str

    def __str__(self) -> str:
        return self.text

    @property
    def place(self) -> str:
        """The same for each URI that leads to this export."""
        return f"nbd:{self.where}/{self.export}"


def parse_uri(text: str) -> Address:
    """The address in a URI such as nbd://HOST:10809/EXPORT or nbd+unix:///EXPORT?socket=PATH.

    Raises ConfigError where `text` is no such URI, or needs something that backy cannot do.
    """
    try:
        return _address(text)
    except ValueError as error:
        hint = "Write nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH; nbds for TLS."
        raise ConfigError(f"{text!a:.300} is no URI of an NBD export: {error}", hint) from error


def _address(text: str) -> Address:
    uri = urlsplit(text)
    # In these URIs a plus sign means itself.
    query = dict(parse_qsl(uri.query.replace("+", "%2B"), errors="strict"))
    if uri.scheme not in _SCHEMES or not text.isprintable():
        raise ValueError(f"it is not printable, or begins with none of {', '.join(_SCHEMES)}")
    if query.keys() - _PARAMETERS or uri.username is not None or uri.fragment:
        raise ValueError(f"it has more than {', '.join(sorted(_PARAMETERS))}")
    is_unix = uri.scheme.endswith("+unix")
    if is_unix != ("socket" in query) or is_unix == bool(uri.netloc):
        raise ValueError("it needs a host, or with +unix a socket and no host")
    export = unquote(uri.path.removeprefix("/"), errors="strict")
    if len(export.encode()) > _LONGEST_NAME:
        raise ValueError(f"the export's name is longer than {_LONGEST_NAME} bytes")
    host, folder = uri.hostname or "localhost", query.get("tls-certificates")
    where = query["socket"] if is_unix else (host.encode("idna").decode(), uri.port or 10809)
    tls_name = query.get("tls-hostname", host) if uri.scheme.startswith("nbds") else ""
    return Address(text, export, where, Path(folder) if folder else None, tls_name)
