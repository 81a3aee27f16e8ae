"""URIs mean what the specification says, and what is none is refused before anybody connects."""

from pathlib import Path

import pytest

from backy.errors import ConfigError
from backy.nbd.uri import Address, parse_uri


@pytest.mark.parametrize(
    ("text", "export", "where"),
    [
        ("nbd://example.com", "", ("example.com", 10809)),
        ("nbd://example.com/", "", ("example.com", 10809)),
        ("nbd://h:10810/disk", "disk", ("h", 10810)),
        ("nbd://h//disk", "/disk", ("h", 10809)),
        ("nbd://h/a%20b%2Fc+d", "a b/c+d", ("h", 10809)),
        ("nbd://h/%C3%A4", "ä", ("h", 10809)),
        ("nbd://[::1]:5/x", "x", ("::1", 5)),
        ("NBD://h/x", "x", ("h", 10809)),
        ("nbd+unix:///?socket=/run/s", "", "/run/s"),
        ("nbd+unix:///a%3fb?socket=/r+s%20t", "a?b", "/r+s t"),
    ],
)
def test_a_uri_says_where_an_export_is(
    text: str, export: str, where: str | tuple[str, int]
) -> None:
    assert parse_uri(text) == Address(text, export, where, certificates=None, tls_name="")
    assert str(parse_uri(text)) == text


@pytest.mark.parametrize(
    ("text", "certificates", "name"),
    [
        ("nbds://h/x", None, "h"),
        ("nbds+unix:///x?socket=/s", None, "localhost"),
        ("nbds+unix:///x?socket=/s&tls-certificates=/etc/p%20ki", "/etc/p ki", "localhost"),
        ("nbds://10.0.0.1/x?tls-certificates=/k&tls-hostname=nbd.org", "/k", "nbd.org"),
    ],
)
def test_a_uri_says_whose_certificate_is_good(
    text: str, certificates: str | None, name: str
) -> None:
    address = parse_uri(text)
    assert address.certificates == (Path(certificates) if certificates else None)
    assert address.tls_name == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/srv/disk.img",
        "http://example.com/",
        "nbd+vsock:///x",
        "nbd:unix:/run/s",
        "nbd:///x",
        "nbd://",
        "nbd://user@h/x",
        "nbd://h/x#part",
        "nbd://h:0x1/x",
        "nbd://h:99999/x",
        "nbd://h:-1/x",
        "nbd://[::1/x",
        "nbd://a..b/x",
        f"nbd://{'h' * 70}/x",
        "nbd://h/%ff",
        f"nbd://h/{'x' * 4097}",
        "nbd://h/x\n",
        "nbd://h/x\x1b[2J",
        "nbd://h/x?socket=/run/s",
        "nbd+unix:///x",
        "nbd+unix://h/x?socket=/run/s",
        "nbd+unix:///x?socket=",
        "nbds+unix:///x?socket=/a&tls-psk-file=/b",
        "nbds+unix:///x?socket=/a&tls_certificates=/b",
    ],
    ids=lambda text: repr(text)[:40],
)
def test_what_is_no_uri_of_an_export_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no URI of an NBD export") as caught:
        parse_uri(text)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 500
    assert "nbd+unix:///EXPORT?socket=PATH" in caught.value.hint
