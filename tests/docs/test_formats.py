"""docs/formats.md describes every file and field that backy writes, and no other."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backy.monitoring.space import record_space
from tests.docs import markdown
from tests.docs.stage import Stage
from tests.lab.handmade import MIB
from tests.lab.volumes import Mounts

TEXT = (markdown.PROJECT / "docs" / "formats.md").read_text()
NAMES = markdown.table(markdown.section(TEXT, "Names"))
ID = r"[0-9]{8}T[0-9]{6}Z-[a-z0-9]{4}"
PARTS = {"REV": ID, "BATCH": ID, "DISK": r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "AB": "[0-9a-f]{2}"}
PARTS |= {"HASH": "[0-9a-f]{64}", "REPORT": r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{4}"}
JSON_FILES = (
    "repository.json", "revision.json", "scrub.json", "report.json", "status.json", "restores.json",
)  # fmt: skip
NAMED = ("disks.", "damaged.", "lengths.")  # fields whose keys are the names of disks
# What three bytes on the medium do to the first block of disk vda, in every revision.
DAMAGE = {
    "chunks": """page=$(cat revisions/*/vda.blocks | head -n 1)
        hash=$(head -n 1 pages/$(printf %.2s $page)/$page)
        chunk=chunks/$(printf %.2s $hash)/$hash.zst
        printf rot | dd of=$chunk bs=1 seek=20 conv=notrunc""",
    "images": """for image in revisions/*/vda.img; do
            chmod u+w $image
            printf rot | dd of=$image bs=1 seek=20 conv=notrunc
            chmod a-w $image
        done""",
}
TYPES: dict[str, Callable[[object], bool]] = {
    "integer": lambda value: type(value) is int and value >= 0,
    "number": lambda value: type(value) in {int, float},
    "string": lambda value: isinstance(value, str),
    "object": lambda value: isinstance(value, dict),
    "null": lambda value: value is None,
    "list of strings": lambda value: (
        isinstance(value, list) and all(isinstance(i, str) for i in value)
    ),
    "list of pairs": lambda value: (
        isinstance(value, list)
        and all(len(pair) == 2 and all(type(i) is int for i in pair) for pair in value)
    ),
    "list of objects": lambda value: (
        isinstance(value, list) and all(isinstance(each, dict) for each in value)
    ),
    "list of samples": lambda value: (
        isinstance(value, list) and all(is_time(time) and free > 0 for time, free in value)
    ),
    "time": lambda value: isinstance(value, str) and is_time(value),
}


def is_time(text: str) -> bool:
    """Whether `text` is in UTC and whole seconds, as the page says."""
    return f"{datetime.fromisoformat(text):%Y-%m-%dT%H:%M:%SZ}" == text


@pytest.fixture(scope="module", params=["chunks", "images"])
def repository(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, mounts: Mounts
) -> Iterator[Path]:
    """A repository of each store with all it can have: two disks, tags, trash, damage, reports."""
    if request.param == "chunks":
        yield filled(tmp_path_factory.mktemp("formats"), "chunks")
        return
    with mounts.folder("xfs") as folder:
        yield filled(folder, "images")


def filled(folder: Path, store: str) -> Path:
    stage = Stage(folder / "stage")
    stage.make()
    stage.sh(f"""set -e
        head -c 100000 /images/vm1.img >/images/second.img
        backy backup vm1 --source /images/vm1.img --source second=/images/second.img \\
            --store {store} --tag daily
        backy backup vm1 --tag daily --tag weekly
        backy backup vm1
        printf new | dd of=/images/vm1.img bs=1 seek=30 conv=notrunc
        cd /srv/backy/vm1
        backy restore vm1 /images/restored.img --disk vda
        {DAMAGE[store]}
        ! backy verify vm1
        backy scrub vm1 || test $? -eq 6
        backy remove vm1 -r latest""")
    return stage.root / "srv" / "backy" / "vm1"


def documented_files(store: str) -> dict[str, re.Pattern[str]]:
    """The paths of the table that a repository with this store has, as patterns."""
    patterns = {}
    for row in NAMES:
        if row["store"] in {"both", store}:
            pattern = re.escape(row["path"])
            for part, meaning in PARTS.items():
                pattern = re.sub(rf"\b{part}\b", meaning.replace("\\", "\\\\"), pattern)
            patterns[row["path"]] = re.compile(pattern)
    return patterns


def test_every_file_is_documented_and_every_documented_file_is_written(repository: Path) -> None:
    files = {str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file()}
    store = json.loads((repository / "repository.json").read_text())["store"]
    patterns = documented_files(store)
    unknown = {
        name for name in files if not any(each.fullmatch(name) for each in patterns.values())
    }
    unwritten = {path for path, each in patterns.items() if not any(map(each.fullmatch, files))}
    assert (unknown, unwritten) == (set(), set())


def fields(record: dict[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Each field with its path; the names of disks become DISK, as on the page."""
    for key, value in record.items():
        name = f"{prefix}{'DISK' if prefix.endswith(NAMED) else key}"
        yield name, value
        if isinstance(value, dict):
            yield from fields(value, f"{name}.")
        for each in value if isinstance(value, list) else ():
            if isinstance(each, dict):
                yield from fields(each, f"{name}.")


def rows(heading: str) -> dict[str, str]:
    """The type of each field of a table."""
    return {row["field"]: row["type"] for row in markdown.table(markdown.section(TEXT, heading))}


def check(record: dict[str, object], types: dict[str, str]) -> None:
    written = list(fields(record))
    assert {name for name, _ in written} | {"disks.DISK"} == set(types) | {"disks.DISK"}
    for name, value in written:
        wanted = types.get(name, "object")
        assert any(TYPES[kind](value) for kind in wanted.split(" or ")), f"{name} is no {wanted}"


def test_the_fields_of_repository_json_are_those_of_the_page(repository: Path) -> None:
    check(json.loads((repository / "repository.json").read_text()), rows("repository.json"))


def test_the_fields_of_revision_json_are_those_of_the_page(repository: Path) -> None:
    paths = [
        *repository.glob("revisions/*/revision.json"),
        *repository.glob("trash/*/*/revision.json"),
    ]
    assert len(paths) == 3
    for path in paths:
        check(json.loads(path.read_text()), rows("revision.json"))


def test_the_fields_of_restores_json_are_those_of_the_page(repository: Path) -> None:
    check(json.loads((repository / "restores.json").read_text()), rows("restores.json"))


def test_the_fields_of_scrub_json_are_those_of_the_page(repository: Path) -> None:
    check(json.loads((repository / "scrub.json").read_text()), rows("scrub.json"))


def test_the_fields_of_report_json_are_those_of_the_page(repository: Path) -> None:
    (path,) = repository.glob("quarantine/*/report.json")
    check(json.loads(path.read_text()), rows("report.json"))


def test_the_fields_of_status_json_are_those_of_the_page(repository: Path) -> None:
    check(json.loads((repository / "status.json").read_text()), rows("status.json"))


def test_the_fields_of_space_json_are_those_of_the_page(tmp_path: Path) -> None:
    record_space(tmp_path, datetime.now(UTC))
    (path,) = (each for each in tmp_path.rglob("*") if each.is_file())
    assert path == tmp_path / ".backy" / "space.json"
    check(json.loads(path.read_text()), rows("space.json"))


def test_what_is_kept_beside_a_report_are_the_damaged_bytes_and_nothing_else(
    repository: Path,
) -> None:
    (folder,) = repository.glob("quarantine/*")
    report = json.loads((folder / "report.json").read_text())
    stored = (folder / "stored").read_bytes()
    name = f"chunks/{report['digest'][:2]}/{report['digest']}.zst"
    image = next(repository.glob("revisions/*/vda.img"), repository / name)
    there = image.read_bytes() if image.suffix == ".zst" else image.read_bytes()[:MIB]
    assert stored == there
    assert not (folder / "source").exists()


def test_json_files_have_one_key_a_line_and_two_spaces_a_level(repository: Path) -> None:
    found = sorted(repository.rglob("*.json"))
    assert {path.name for path in found} == set(JSON_FILES)
    for path in found:
        text = path.read_text()
        assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"


def test_nobody_but_the_owner_can_read_what_is_stored(repository: Path) -> None:
    for path in repository.rglob("*"):
        if path.is_file() and path.name != "restore.sh":
            way = [each for each in (path, *path.parents) if repository in each.parents]
            assert any(each.stat().st_mode & 0o077 == 0 for each in way), path
    assert (repository / "restore.sh").stat().st_mode & 0o777 == 0o755


def test_images_are_read_only(repository: Path) -> None:
    for image in repository.glob("revisions/*/*.img"):
        assert image.stat().st_mode & 0o222 == 0
