"""What is read from a repository may be damaged, forged or newer; what is written never changes."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backy.errors import BackyError, ConfigError, DamagedError
from backy.model.revision import Consistency, Disk, Revision, Trust
from backy.repository.manifest import (
    Settings,
    encode_revision,
    encode_settings,
    read_revision,
    read_settings,
    revision_record,
)
from backy.units import GiB, KiB, MiB, format_duration, format_size
from tests.golden.compare import FOLDER, assert_golden

ID = "20261123T004938Z-x7k2"
BLOCK = 4 * MiB
SETTINGS = Settings(
    store="chunks",
    block_size=BLOCK,
    level=3,
    source={"type": "file", "disks": {"vda": "/srv/images/größe.img"}},
)
REVISION = Revision(
    id=ID,
    time=datetime(2026, 11, 23, 0, 49, 38, tzinfo=UTC),
    parent="20261122T004938Z-a1b2",
    seconds=12.345,
    consistency=Consistency.CRASH,
    disks={
        "vda": Disk(
            40 * GiB, BLOCK, "ab" * 32, 3 * GiB, 512 * MiB, 200 * MiB, 4 * MiB, pages=98_930
        ),
        "data-1.raw": Disk(1, BLOCK, "0" * 64, 1, 0, 0, 0, "its bitmap is gone"),
    },
    tags=("daily", "manual:vor-größerem-umbau"),
    trust=Trust.VERIFIED,
    verified=datetime(2026, 11, 24, 3, 0, 0, tzinfo=UTC),
    warnings=("disk data-1.raw is new; all of it was read",),
)
OLD = replace(
    REVISION,
    format=1,
    disks={name: replace(disk, pages=0) for name, disk in REVISION.disks.items()},
)

Json = dict[str, Any]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for one repository.json, and one for one revision.json."""
    root = tmp_path_factory.mktemp("vm1")
    (root / "revisions" / ID).mkdir(parents=True)
    return root


def read_settings_from(repository: Path, content: bytes) -> Settings:
    (repository / "repository.json").write_bytes(content)
    return read_settings(repository / "repository.json")


def read_revision_from(repository: Path, content: bytes, block_size: int = BLOCK) -> Revision:
    path = repository / "revisions" / ID / "revision.json"
    path.write_bytes(content)
    return read_revision(path, block_size)


def changed(encoded: bytes, *keys: str, value: object) -> bytes:
    """The record with another value at `keys`."""
    record = json.loads(encoded)
    inner = record
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return json.dumps(record).encode()


def without(encoded: bytes, key: str) -> bytes:
    record = json.loads(encoded)
    del record[key]
    return json.dumps(record).encode()


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


# The formats.


def test_repository_json_is_written_byte_for_byte_as_it_always_was() -> None:
    assert_golden("format-2/repository.json", encode_settings(SETTINGS))
    assert_golden("repository.json", encode_settings(replace(SETTINGS, format=1)))


def test_revision_json_is_written_byte_for_byte_as_it_always_was() -> None:
    assert_golden("format-2/revision.json", encode_revision(REVISION))


def test_a_repository_json_of_always_is_read() -> None:
    assert read_settings(FOLDER / "format-2" / "repository.json") == SETTINGS
    assert read_settings(FOLDER / "repository.json") == replace(SETTINGS, format=1)


def test_a_revision_json_without_what_came_later_is_read(repository: Path) -> None:
    record = json.loads((FOLDER / "revision.json").read_bytes())
    for each in record["disks"].values():
        del each["compared"], each["whole"], each["read_back"], each["looked_up"]
    revision = read_revision_from(repository, json.dumps(record).encode())
    assert [(each.compared, each.whole) for each in revision.disks.values()] == [(0, "")] * 2


def test_a_revision_json_of_always_is_read(repository: Path) -> None:
    content = (FOLDER / "format-2" / "revision.json").read_bytes()
    assert read_revision_from(repository, content) == REVISION
    content = (FOLDER / "revision.json").read_bytes()
    assert read_revision_from(repository, content) == OLD


def test_a_record_of_format_1_keeps_its_format_when_it_is_written_again(repository: Path) -> None:
    content = (FOLDER / "revision.json").read_bytes()
    again = json.loads(encode_revision(read_revision_from(repository, content)))
    for disk in again["disks"].values():
        assert disk.pop("pages") == 0
        assert disk.pop("image_format") == ""
    assert again == json.loads(content)
    settings = read_settings_from(repository, (FOLDER / "repository.json").read_bytes())
    assert encode_settings(settings) == (FOLDER / "repository.json").read_bytes()


def test_the_record_on_the_screen_is_the_one_on_disk() -> None:
    for revision in (REVISION, OLD):
        assert revision_record(revision) == json.loads(encode_revision(revision))


def test_what_older_versions_did_not_write_has_a_default(repository: Path) -> None:
    content = encode_revision(REVISION)
    for key in ("tags", "trust", "verified", "warnings"):
        content = without(content, key)
    revision = read_revision_from(repository, content)
    assert (revision.tags, revision.trust, revision.verified) == ((), Trust.TRUSTED, None)
    settings = read_settings_from(repository, b'{"format":1,"store":"images","block_size":65536}')
    assert settings == Settings("images", 64 * KiB, 1, {}, format=1)


sizes = st.integers(0, 2**60)
times = (
    st.integers(631152000, 29000000000)
    .map(lambda second: datetime.fromtimestamp(second, UTC))
    .map(lambda time: time.replace(microsecond=0))
)
disks = st.builds(
    Disk,
    size=st.integers(1, 2**60),
    block_size=st.just(BLOCK),
    index_hash=st.text("0123456789abcdef", min_size=64, max_size=64),
    read=sizes,
    changed=sizes,
    stored=sizes,
)
revisions = st.builds(
    Revision,
    id=st.just(ID),
    time=st.just(REVISION.time),
    parent=st.none() | st.just("20261122T004938Z-a1b2"),
    seconds=st.floats(0, 1e6),
    consistency=st.sampled_from(Consistency),
    disks=st.dictionaries(st.from_regex(r"[a-z][a-z0-9._-]{0,9}", fullmatch=True), disks).filter(
        bool
    ),
    tags=st.lists(st.from_regex(r"[a-zäöü0-9][a-z:@]{0,9}", fullmatch=True), max_size=3).map(tuple),
    trust=st.sampled_from(Trust),
    verified=st.none() | times,
    format=st.sampled_from([1, 2]),
    warnings=st.lists(st.text(st.characters(codec="utf-8"), max_size=20), max_size=2).map(tuple),
)


@given(revision=revisions)
def test_a_revision_is_read_as_it_was_written(repository: Path, revision: Revision) -> None:
    content = encode_revision(revision)
    assert read_revision_from(repository, content) == revision
    assert encode_revision(read_revision_from(repository, content)) == content


# Damage: every byte may be lost or be another.


@pytest.mark.parametrize("read", [read_settings_from, read_revision_from])
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="cut-short"),
        pytest.param(b"\0" * 4096, id="zeroes-after-a-power-cut"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[]", id="a-list"),
        pytest.param(b"1", id="a-number"),
        pytest.param(b'"format"', id="a-string"),
        pytest.param(b"{}", id="nothing-in-it"),
        pytest.param(b'{"format": 1}', id="only-the-format"),
        pytest.param(b"\xff\xfe\x00", id="not-utf-8"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"format": 1, "source":' + b'{"a":' * 90_000 + b"1", id="deep-source"),
        pytest.param(b'{"format": ' + b"9" * 100_000 + b"}", id="a-long-number"),
        pytest.param(b" " * (MiB + 1), id="larger-than-any-record"),
        pytest.param(b"<html>404</html>", id="foreign"),
    ],
)
def test_what_is_no_record_is_an_error_that_names_the_file(
    repository: Path, read: Callable[[Path, bytes], object], content: bytes
) -> None:
    with pytest.raises(BackyError, match=r"(repository|revision)\.json") as caught:
        read(repository, content)
    assert caught.value.hint
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize("version", [3, 99, 10**30])
def test_a_newer_format_says_to_update(repository: Path, version: int) -> None:
    settings = changed(encode_settings(SETTINGS), "format", value=version)
    with pytest.raises(ConfigError, match=f"has format {version}") as in_settings:
        read_settings_from(repository, settings)
    revision = changed(encode_revision(REVISION), "format", value=version)
    with pytest.raises(DamagedError, match=f"has format {version}") as in_revision:
        read_revision_from(repository, revision)
    assert in_settings.value.hint == in_revision.value.hint == "Update backy."


@pytest.mark.parametrize("version", [0, -1, None, True, "1", "2", [1], {"major": 2}, 1.5])
def test_a_format_that_never_was_does_not_say_to_update(repository: Path, version: object) -> None:
    content = changed(encode_settings(SETTINGS), "format", value=version)
    with pytest.raises(ConfigError, match="has format") as caught:
        read_settings_from(repository, content)
    assert caught.value.hint != "Update backy."


def test_a_foreign_format_is_not_quoted_at_any_length(repository: Path) -> None:
    content = changed(encode_settings(SETTINGS), "format", value="x" * 500_000)
    with pytest.raises(ConfigError) as caught:
        read_settings_from(repository, content)
    assert len(caught.value.message) < 1000


@given(st.data())
def test_a_record_that_was_cut_short_is_an_error(repository: Path, data: st.DataObject) -> None:
    content = encode_revision(REVISION).rstrip()
    length = data.draw(st.integers(0, len(content) - 1))
    with pytest.raises(DamagedError):
        read_revision_from(repository, content[:length])


@given(st.data())
def test_a_record_with_a_damaged_byte_is_read_or_is_an_error(
    repository: Path, data: st.DataObject
) -> None:
    content = bytearray(encode_revision(REVISION))
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] = data.draw(st.integers(0, 255))
    assert_harmless(repository, bytes(content))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([10**400, -1, 2**60, 2**60 + 1])
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(
        [ID, "../../etc/passwd", "a\0b", "..", "2026-11-23T00:00:00", "0" * 64, "\x1b"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=8) | st.sampled_from(["vda", "../vda"]), inner, max_size=3
        )
    ),
    max_leaves=5,
)
PLACES = [
    *((key,) for key in json.loads(encode_revision(REVISION))),
    *(("disks", "vda", key) for key in json.loads(encode_revision(REVISION))["disks"]["vda"]),
    ("disks", "vda"),
    ("disks", "../../other"),
    ("disks", "."),
    ("unknown",),
]


def assert_harmless(repository: Path, content: bytes) -> None:
    """`content` is refused for what it is, or is a revision that every command can work with."""
    try:
        revision = read_revision_from(repository, content)
    except DamagedError as error:
        assert error.hint  # noqa: PT017 - either is fine
        return
    assert revision.id == ID
    assert revision.time.utcoffset() == timedelta(0)
    assert revision.verified is None or revision.verified.utcoffset() == timedelta(0)
    assert math.isfinite(revision.seconds)
    assert len(format_duration(revision.seconds)) < 40
    for name, disk in revision.disks.items():
        assert (repository / name).resolve().parent == repository.resolve()
        for size in (disk.size, disk.read, disk.changed, disk.stored):
            assert size >= 0
            assert len(format_size(size)) < 40
    again = encode_revision(revision)
    json.loads(again, parse_constant=refuse_constant)
    assert read_revision_from(repository, again) == revision


@given(st.sampled_from(PLACES), json_values)
def test_a_forged_revision_is_refused_or_harmless(
    repository: Path, place: tuple[str, ...], value: object
) -> None:
    assert_harmless(repository, changed(encode_revision(REVISION), *place, value=value))


@given(st.sampled_from(["format", "store", "block_size", "level", "source", "x"]), json_values)
def test_a_forged_repository_json_is_refused_or_harmless(
    repository: Path, key: str, value: object
) -> None:
    content = changed(encode_settings(SETTINGS), key, value=value)
    try:
        settings = read_settings_from(repository, content)
    except ConfigError as error:
        assert error.hint  # noqa: PT017 - either is fine
        return
    assert 64 * KiB <= settings.block_size <= 16 * MiB
    assert settings.block_size % (64 * KiB) == 0
    assert 1 <= settings.level <= 19


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_size", 0),
        ("block_size", -MiB),
        ("block_size", 32 * KiB),
        ("block_size", 64 * KiB + 1),
        ("block_size", 96 * KiB),
        ("block_size", 32 * MiB),
        ("block_size", 10**30),
        ("block_size", "many"),
        ("block_size", None),
        ("level", 0),
        ("level", 20),
        ("level", -7),
        ("level", 1.5),
        ("store", None),
        ("store", 7),
        ("source", []),
        ("source", "file"),
    ],
)
def test_a_setting_that_is_impossible_is_refused(repository: Path, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=r"repository\.json"):
        read_settings_from(repository, changed(encode_settings(SETTINGS), key, value=value))


@pytest.mark.parametrize("block_size", [64 * KiB, 192 * KiB, MiB, 16 * MiB])
@pytest.mark.parametrize("level", [1, 19])
def test_every_setting_at_a_limit_is_taken(repository: Path, block_size: int, level: int) -> None:
    settings = Settings("chunks", block_size, level)
    assert read_settings_from(repository, encode_settings(settings)) == settings


LEADS_OUT = ["..", ".", "", "/etc/passwd", "../x", "a/b", "a\0b", "a\nb", "-rf", ".x", "x" * 65]


@pytest.mark.parametrize("name", LEADS_OUT)
def test_a_disk_whose_name_leads_out_of_the_folder_is_refused(repository: Path, name: str) -> None:
    record = json.loads(encode_revision(REVISION))
    record["disks"] = {name: record["disks"]["vda"]}
    with pytest.raises(DamagedError, match="cannot be the name of a disk"):
        read_revision_from(repository, json.dumps(record).encode())


FORGED = [
    pytest.param(("id",), "20261123T004938Z-zzzz", id="id-of-another-folder"),
    pytest.param(("id",), f"../{ID}", id="id-with-a-slash"),
    pytest.param(("id",), None, id="no-id"),
    pytest.param(("disks",), {}, id="no-disks"),
    pytest.param(("disks",), [], id="a-list-of-disks"),
    pytest.param(("time",), "2026-11-23T00:49:38", id="time-without-zone"),
    pytest.param(("time",), "yesterday", id="no-time"),
    pytest.param(("time",), "2027-01-01T00:00:00Z", id="time-after-the-id's"),
    pytest.param(("verified",), "2026-11-23T00:49:38", id="verified-without-zone"),
    pytest.param(("seconds",), math.nan, id="seconds-not-a-number"),
    pytest.param(("seconds",), math.inf, id="seconds-infinite"),
    pytest.param(("seconds",), -1, id="seconds-negative"),
    pytest.param(("tags",), ["a b"], id="tag-with-a-space"),
    pytest.param(("tags",), ["a..b"], id="tag-with-a-range"),
    pytest.param(("tags",), ["; rm -rf /"], id="tag-for-a-shell"),
    pytest.param(("tags",), "daily", id="tags-that-are-one-string"),
    pytest.param(("trust",), "blindly", id="unknown-trust"),
    pytest.param(("consistency",), "perfect", id="unknown-consistency"),
    pytest.param(("disks", "vda", "size"), 0, id="disk-of-nothing"),
    pytest.param(("disks", "vda", "size"), -1, id="disk-of-less"),
    pytest.param(("disks", "vda", "size"), 2**60 + 1, id="disk-larger-than-any"),
    pytest.param(("disks", "vda", "block_size"), MiB, id="another-block-size"),
    pytest.param(("disks", "vda", "block_size"), 0, id="block-of-nothing"),
    pytest.param(("disks", "vda", "index_hash"), "0" * 63, id="short-hash"),
    pytest.param(("disks", "vda", "index_hash"), "A" * 64, id="hash-in-capitals"),
    pytest.param(("disks", "vda", "index_hash"), "0" * 64 + "\n", id="hash-and-a-newline"),
    pytest.param(("disks", "vda", "stored"), 10**400, id="more-stored-than-there-is"),
    pytest.param(("disks", "vda", "changed"), -5, id="less-than-nothing-changed"),
    pytest.param(("disks", "vda", "pages"), -1, id="less-than-no-pages"),
    pytest.param(("disks", "vda", "image_format"), "../qcow2", id="no-format"),
    pytest.param(("disks", "vda"), None, id="disk-without-anything"),
]


@pytest.mark.parametrize(("place", "value"), FORGED)
def test_a_revision_that_cannot_be_is_refused(
    repository: Path, place: tuple[str, ...], value: object
) -> None:
    with pytest.raises(DamagedError, match=r"revision\.json") as caught:
        read_revision_from(repository, changed(encode_revision(REVISION), *place, value=value))
    assert "restore" in caught.value.hint


def test_a_file_that_is_missing_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"repository\.json: No such file"):
        read_settings(tmp_path / "repository.json")
    with pytest.raises(DamagedError, match=r"revision\.json: No such file"):
        read_revision(tmp_path / ID / "revision.json", BLOCK)


def test_a_folder_in_the_place_of_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "repository.json").mkdir()
    with pytest.raises(ConfigError, match="not a regular file"):
        read_settings(tmp_path / "repository.json")


def test_a_draft_is_read_in_its_hidden_folder(tmp_path: Path) -> None:
    (tmp_path / f".{ID}").mkdir()
    (tmp_path / f".{ID}" / "revision.json").write_bytes(encode_revision(REVISION))
    assert read_revision(tmp_path / f".{ID}" / "revision.json", BLOCK) == REVISION
