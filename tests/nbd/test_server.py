"""The NBD server keeps to the protocol, and hands out only what it could read."""

import errno
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from backy.errors import SourceError
from backy.image.image import Image
from backy.nbd.remote_image import open_image
from backy.nbd.uri import parse_uri
from tests.cli.runner import wait_for
from tests.conformance.image import ImageSuite, read
from tests.nbd.servers import certificates, content_of, map_of
from tests.nbd.serving import BLOCK, CHANGED, Client, Serving, packed, serving

CONTENT = Random(1).randbytes(10 * BLOCK + 1000)
CONTENTS = {"disk": CONTENT, "zero": bytes(5 * BLOCK), "small": b"x"}
DATA, HOLE, STATUS = 1, 2, 5
READ, WRITE, DISCONNECT, TRIM, WRITE_ZEROES, BLOCK_STATUS = 0, 1, 2, 4, 6, 7
UNSUPPORTED, POLICY, INVALID, TLS_REQUIRED, UNKNOWN = (1 << 31 | n for n in (1, 2, 3, 5, 6))


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving(CONTENTS) as made:
        yield made


class TestReadByOurClient(ImageSuite):
    """With structured replies, through several connections."""

    @contextmanager
    def open(self, content: bytes, folder: Path) -> Iterator[Image]:
        with (
            serving({"disk": content}) as made,
            open_image(parse_uri(made.uri()), timeout_seconds=30) as image,
        ):
            yield image


class TestReadWithTls(ImageSuite):
    @contextmanager
    def open(self, content: bytes, folder: Path) -> Iterator[Image]:
        keys = certificates(folder / "keys")
        query = f"&tls-certificates={keys}&tls-hostname=localhost"
        with (
            serving({"disk": content}, keys) as made,
            open_image(
                parse_uri(made.uri().replace("nbd+", "nbds+") + query), timeout_seconds=30
            ) as image,
        ):
            yield image


@pytest.mark.parametrize("name", CONTENTS)
def test_nbdcopy_gets_the_content(server: Serving, name: str) -> None:
    assert content_of(server.uri(name)) == CONTENTS[name]


def test_nbdinfo_gets_what_is_known_of_ranges(server: Serving) -> None:
    assert map_of(server.uri("zero")) == [(0, 5 * BLOCK, 3)]
    assert map_of(server.uri(), CHANGED) == [(0, BLOCK, 0), (BLOCK, len(CONTENT) - BLOCK, 1)]


def test_a_name_that_means_another_disk_tomorrow_promises_nothing_about_connections(
    server: Serving,
) -> None:
    with Client(server.path) as client:
        flags = [info(client, name)[1] for name in ("disk", "latest")]
    assert [each & 1 << 8 for each in flags] == [1 << 8, 0]


def info(client: Client, name: str) -> tuple[int, int]:
    """The size and the flags of an export."""
    replies = client.option(6, packed(name) + b"\0\0")
    size, flags = struct.unpack(">QH", replies[0][1][2:])
    return size, flags


def test_exports_are_read_only_and_have_a_size(server: Serving) -> None:
    with Client(server.path) as client:
        for name, content in CONTENTS.items():
            size, flags = info(client, name)
            assert (size, flags & 3) == (len(content), 3)


def test_a_client_without_structured_replies_reads_the_same(server: Serving) -> None:
    with Client(server.path) as client:
        client.go(is_structured=False)
        client.ask(READ, 100, 3 * BLOCK)
        assert client.simple(3 * BLOCK) == (0, CONTENT[100 : 100 + 3 * BLOCK])


def test_an_old_client_reads_the_same(server: Serving) -> None:
    for flags in (1, 3):
        with Client(server.path, flags) as client:
            client.send(b"IHAVEOPT" + struct.pack(">II", 1, 4) + b"disk")
            size, _ = struct.unpack(">QH", client.receive(10))
            assert size == len(CONTENT)
            assert client.receive(0 if flags & 2 else 124) == bytes(0 if flags & 2 else 124)
            client.ask(READ, 5, 10)
            assert client.simple(10) == (0, CONTENT[5:15])


def test_data_comes_block_by_block_or_in_one_piece(server: Serving) -> None:
    with Client(server.path) as client:
        client.go()
        for flags, count in ((0, 4), (4, 1)):
            client.ask(READ, 1000, 3 * BLOCK, flags)
            chunks = list(client.chunks())
            assert [kind for kind, _ in chunks] == [DATA] * count
            assert b"".join(data[8:] for _, data in chunks) == CONTENT[1000 : 1000 + 3 * BLOCK]


def test_zeroes_come_as_holes_and_are_not_read(server: Serving) -> None:
    server.exports.bad.update(range(5))
    try:
        with Client(server.path) as client:
            client.go("zero")
            client.ask(READ, 1000, 3 * BLOCK)
            assert list(client.chunks()) == [(HOLE, struct.pack(">QI", 1000, 3 * BLOCK))]
    finally:
        server.exports.bad.clear()


def test_requests_that_come_together_are_answered_one_after_the_other(server: Serving) -> None:
    with Client(server.path) as client:
        client.go(is_structured=False)
        starts = [(number * 7919) % (len(CONTENT) - 500) for number in range(100)]
        for cookie, start in enumerate(starts):
            client.ask(READ, start, 500, cookie=cookie)
        for cookie, start in enumerate(starts):
            assert client.simple(500, cookie) == (0, CONTENT[start : start + 500])


@pytest.mark.parametrize("command", [WRITE, TRIM, WRITE_ZEROES])
@pytest.mark.parametrize("is_structured", [True, False])
def test_a_write_is_not_permitted_and_the_connection_goes_on(
    server: Serving, command: int, is_structured: bool
) -> None:
    with Client(server.path) as client:
        client.go(is_structured=is_structured)
        client.ask(command, 0, 100_000)
        client.send(bytes(100_000) if command == WRITE else b"")
        error = client.error() if is_structured else client.simple()[0]
        assert error == errno.EPERM
        client.ask(READ, 0, 1)
        assert (list(client.chunks()) if is_structured else client.simple(1))[-1]


@pytest.mark.parametrize(
    ("command", "offset", "length"),
    [
        pytest.param(READ, len(CONTENT), 1, id="behind-the-end"),
        pytest.param(READ, len(CONTENT) - 1, 2, id="beyond-the-end"),
        pytest.param(READ, 2**64 - 1, 2**32 - 1, id="far-away"),
        pytest.param(READ, 0, 0, id="nothing"),
        pytest.param(BLOCK_STATUS, len(CONTENT), 1, id="status-behind-the-end"),
        pytest.param(BLOCK_STATUS, 0, 1, id="status-without-a-context"),
        pytest.param(3, 0, 0, id="flush"),
        pytest.param(99, 0, 1, id="unknown"),
    ],
)
def test_a_request_that_cannot_be_answered_is_invalid_and_the_connection_goes_on(
    server: Serving, command: int, offset: int, length: int
) -> None:
    with Client(server.path) as client:
        client.go()
        client.ask(command, offset, length)
        assert client.error() == errno.EINVAL
        client.ask(READ, 0, 1)
        assert list(client.chunks())[-1][1][8:] == CONTENT[:1]


def test_more_than_32_mib_are_too_much_for_one_request() -> None:
    size = 32 * 1024 * 1024 + 1
    content = b"a" * size
    with serving({"disk": content}) as made, Client(made.path) as client:
        client.go()
        client.ask(READ, 0, size)
        assert client.error() == errno.EINVAL
        client.ask(READ, 1, size - 1)
        assert b"".join(data[8:] for _, data in client.chunks()) == content[1:]


def test_a_block_that_cannot_be_read_is_an_error_after_what_was_good() -> None:
    with serving(CONTENTS, bad=[2]) as made, Client(made.path) as client:
        client.go()
        client.ask(READ, 0, 4 * BLOCK)
        *good, (kind, error) = client.chunks()
        assert [data[8:] for _, data in good] == [CONTENT[:BLOCK], CONTENT[BLOCK : 2 * BLOCK]]
        assert (kind, error[:4]) == (1 << 15 | 1, struct.pack(">I", errno.EIO))
        assert made.log == ["block 2 is damaged"]
        client.ask(READ, 3 * BLOCK, 10)
        assert next(client.chunks())[1][8:] == CONTENT[3 * BLOCK : 3 * BLOCK + 10]


@pytest.mark.parametrize("is_structured", [True, False])
def test_a_reply_in_one_piece_is_either_good_or_an_error(is_structured: bool) -> None:
    with serving(CONTENTS, bad=[2]) as made, Client(made.path) as client:
        client.go(is_structured=is_structured)
        client.ask(READ, 0, 4 * BLOCK, flags=4 if is_structured else 0)
        assert (client.error() if is_structured else client.simple()[0]) == errno.EIO


def test_our_client_passes_an_error_on() -> None:
    with (
        serving(CONTENTS, bad=[2]) as made,
        open_image(parse_uri(made.uri()), timeout_seconds=30) as image,
    ):
        assert read(image, 0, BLOCK) == CONTENT[:BLOCK]
        with pytest.raises(SourceError, match="block 2 is damaged"):
            read(image, 2 * BLOCK, 1)


def test_block_status_gives_one_extent_where_one_is_asked_for(server: Serving) -> None:
    with Client(server.path) as client:
        client.go("disk", "base:allocation", CHANGED, "nosuch:context")
        client.ask(BLOCK_STATUS, 10, 3 * BLOCK)
        chunks = list(client.chunks())
        assert [(kind, data[:4]) for kind, data in chunks] == [
            (STATUS, struct.pack(">I", number)) for number in (1, 2)
        ]
        assert chunks[1][1][4:] == struct.pack(">IIII", BLOCK - 10, 0, 2 * BLOCK + 10, 1)
        client.ask(BLOCK_STATUS, 10, 3 * BLOCK, flags=8)
        assert [len(data) for _, data in client.chunks()] == [12, 12]


def test_contexts_are_listed_by_what_their_names_begin_with(server: Serving) -> None:
    with Client(server.path) as client:
        client.option(8)
        for queries, found in (
            ([], ["base:allocation", CHANGED]),
            (["base:"], ["base:allocation"]),
            (["backy:"], [CHANGED]),
            (["nosuch:"], []),
        ):
            asked = (
                packed("disk") + struct.pack(">I", len(queries)) + b"".join(map(packed, queries))
            )
            *replies, end = client.option(9, asked)
            assert [data[4:].decode() for _, data in replies] == found
            assert end == (1, b"")


def test_contexts_of_one_export_do_not_count_for_another(server: Serving) -> None:
    with Client(server.path) as client:
        client.option(8)
        client.option(10, packed("zero") + struct.pack(">I", 1) + packed("base:allocation"))
        client.go("disk")
        client.ask(BLOCK_STATUS, 0, 10)
        assert client.error() == errno.EINVAL


def test_all_names_are_listed(server: Serving) -> None:
    with Client(server.path) as client:
        replies = client.option(3)
        assert [data[4:].decode() for _, data in replies[:-1]] == list(CONTENTS)


@pytest.mark.parametrize(
    ("option", "data", "expected"),
    [
        pytest.param(3, b"x", INVALID, id="list-with-data"),
        pytest.param(5, b"", POLICY, id="no-tls-here"),
        pytest.param(6, packed("nosuch") + b"\0\0", UNKNOWN, id="unknown-name"),
        pytest.param(7, b"", INVALID, id="go-without-a-name"),
        pytest.param(7, b"\xff\xff\xff\xffdisk", INVALID, id="name-beyond-the-option"),
        pytest.param(7, packed("disk") + b"\0\2\0\1", INVALID, id="fewer-infos-than-announced"),
        pytest.param(7, b"\0\0\0\1\xff\0\0", INVALID, id="name-that-is-no-text"),
        pytest.param(10, packed("disk") + b"\0\0\0\0", INVALID, id="contexts-without-structure"),
        pytest.param(11, b"", UNSUPPORTED, id="extended-headers"),
        pytest.param(77, bytes(60_000), UNSUPPORTED, id="unknown-option"),
    ],
)
def test_an_option_that_cannot_be_met_is_refused_and_others_may_follow(
    server: Serving, option: int, data: bytes, expected: int
) -> None:
    with Client(server.path) as client:
        assert client.option(option, data)[-1][0] == expected
        client.go()


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"x" * 16, id="no-option"),
        pytest.param(b"IHAVEOPT" + struct.pack(">II", 7, 1 << 20), id="option-too-long"),
        pytest.param(b"IHAVEOPT" + struct.pack(">II", 1, 6) + b"nosuch", id="old-and-unknown"),
        pytest.param(b"IHAVEOPT" + struct.pack(">II", 2, 0), id="goodbye"),
    ],
)
def test_a_client_that_cannot_be_served_is_hung_up_on(server: Serving, sent: bytes) -> None:
    with Client(server.path) as client:
        client.send(sent)
        assert client.is_hung_up()


def test_a_client_of_an_unknown_kind_is_hung_up_on(server: Serving) -> None:
    for flags in (0, 2, 5, 0xFFFFFFFF):
        with Client(server.path, flags) as client:
            assert client.is_hung_up()


def test_who_sends_no_request_is_hung_up_on(server: Serving) -> None:
    with Client(server.path) as client:
        client.go()
        client.send(b"x" * 28)
        assert client.is_hung_up()


def test_with_certificates_nothing_is_told_in_the_open(tmp_path: Path) -> None:
    with serving(CONTENTS, certificates(tmp_path / "keys")) as made:
        with Client(made.path) as client:
            for option in (3, 6, 7, 8, 9, 10):
                assert client.option(option, packed("disk") + b"\0\0")[-1][0] == TLS_REQUIRED
        with Client(made.path) as client:
            client.send(b"IHAVEOPT" + struct.pack(">II", 1, 4) + b"disk")
            assert client.is_hung_up()


def test_a_renewed_certificate_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    keys = certificates(tmp_path / "keys")
    with serving(CONTENTS, keys) as made:
        (keys / "server-cert.pem").unlink()
        with Client(made.path) as client:
            client.option(5)
            assert client.is_hung_up()
        wait_for(lambda: bool(made.log), "it was told")
        assert f"reading the certificates in {keys}" in made.log[0]


def test_bytes_that_somebody_slips_in_before_tls_end_the_connection(tmp_path: Path) -> None:
    starttls = b"IHAVEOPT" + struct.pack(">II", 5, 0)
    with serving(CONTENTS, certificates(tmp_path / "keys")) as made, Client(made.path) as client:
        client.send(starttls + b"IHAVEOPT" + struct.pack(">II", 3, 0))
        assert client.is_hung_up()


def test_slow_clients_with_tls_get_the_content_with_blocks_that_were_dropped_meanwhile(
    tmp_path: Path,
) -> None:
    content, keys = Random(2).randbytes(64 * BLOCK), certificates(tmp_path / "keys")
    with (
        serving({"disk": content}, keys, cache_blocks=2) as made,
        Client(made.path) as first,
        Client(made.path) as second,
    ):
        for client in (first, second):
            client.start_tls(keys).go(is_structured=False)
            client.ask(READ, 0, len(content))
            assert client.receive(16)[4:8] == b"\0\0\0\0"
        for start in range(0, len(content), BLOCK):
            for client in (first, second):
                assert client.receive(BLOCK) == content[start : start + BLOCK]


def test_a_client_with_tls_that_breaks_off_is_forgotten(tmp_path: Path) -> None:
    keys = certificates(tmp_path / "keys")
    with serving(CONTENTS, keys) as made:
        with Client(made.path) as client:
            client.start_tls(keys).go()
            client.ask(READ, 0, len(CONTENT))
        with Client(made.path) as client:
            client.option(5)
            client.send(b"no greeting of TLS")
            assert client.is_hung_up()
        with Client(made.path) as client:
            client.start_tls(keys).go("zero")


def test_an_export_is_open_once_for_all_its_clients_and_closed_after_the_last() -> None:
    with serving(CONTENTS) as made:
        clients = [Client(made.path).go(name) for name in ("disk", "latest", "disk")]
        for client in clients:
            assert not made.exports.opened[0].is_closed
            client.ask(DISCONNECT, 0, 0)
            assert client.is_hung_up()
            client.close()
        assert len(made.exports.opened) == 1
        with Client(made.path) as client:
            client.go()
        assert len(made.exports.opened) == 2


def test_32_clients_read_at_once_and_each_gets_the_truth() -> None:
    found: dict[int, bytes] = {}

    def copy(number: int) -> None:
        with open_image(parse_uri(made.uri()), timeout_seconds=60) as image:
            found[number] = read(image, 0, image.size)

    with serving(CONTENTS, cache_blocks=4) as made:
        threads = [threading.Thread(target=copy, args=(number,)) for number in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found.get(number) == CONTENT for number in range(32)] == [True] * 32


def test_clients_that_do_not_read_their_replies_hold_no_blocks() -> None:
    with serving(CONTENTS, cache_blocks=2) as made:
        lazy = [Client(made.path).go(is_structured=False) for _ in range(20)]
        for client in lazy:
            for _ in range(20):
                client.ask(READ, 0, 8 * BLOCK)
        with Client(made.path) as client:
            client.go(is_structured=False)
            client.ask(READ, 0, len(CONTENT))
            assert client.simple(len(CONTENT)) == (0, CONTENT)
        assert made.exports.cache._size <= 2 * BLOCK
        for client in lazy:
            assert client.simple(8 * BLOCK) == (0, CONTENT[: 8 * BLOCK])
            client.close()


def test_strangers_that_only_connect_do_not_keep_others_out() -> None:
    with serving(CONTENTS) as made:
        idle = [Client(made.path) for _ in range(100)]
        with Client(made.path) as client:
            client.go()
        assert idle[0].is_hung_up()
        for each in idle:
            each.close()
