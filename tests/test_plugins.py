"""A plug-in is found by its name: built in, or in a package that is really installed."""

import sys
import tomllib
from pathlib import Path

import pytest

from backy import sources, stores, targets
from backy.errors import BackyError, ConfigError
from backy.plugins import load
from backy.sources import open_source
from backy.sources.file import FileSource
from backy.stores import store_class
from backy.stores.chunks import ChunkStore
from backy.stores.images import ImageStore

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
OFFERED = PROJECT["project"]["entry-points"]
BUILT_IN = {"path": "pathlib:Path", "nested": "os.path:join"}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the search path with a package that offers three stores."""
    (tmp_path / "tape_for_backy.py").write_text("class TapeStore:\n    is_from_a_plugin = True\n")
    information = tmp_path / "tape_for_backy-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: x\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        "[backy.stores]\n"
        "tape = tape_for_backy:TapeStore\n"
        "chunks = tape_for_backy:TapeStore\n"
        "broken = module_that_is_not_there:Store\n"
        "wrong = tape_for_backy:NoSuchStore\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tape_for_backy", raising=False)
    return tmp_path


def test_what_is_built_in_is_found_by_its_name() -> None:
    assert load("backy.things", "path", BUILT_IN) is Path
    assert load("backy.things", "nested", BUILT_IN)("a", "b") == "a/b"


def test_the_built_in_stores_and_sources_are_found() -> None:
    assert store_class("chunks") is ChunkStore
    assert store_class("images") is ImageStore
    source = open_source({"type": "file", "disks": {"vda": "/srv/vda.img"}})
    assert isinstance(source, FileSource)


def test_all_that_is_built_in_can_be_loaded_and_is_what_the_package_offers() -> None:
    built_in = {
        "backy.sources": sources._BUILT_IN,
        "backy.stores": stores._BUILT_IN,
        "backy.targets": targets._BUILT_IN,
    }
    assert built_in == OFFERED
    for group, names in built_in.items():
        assert all(load(group, name, names) for name in names)


@pytest.mark.parametrize("name", ["tapes", "", "path:Path", "../path", "PATH", "a\nb"])
def test_an_unknown_name_is_quoted_and_what_is_built_in_is_listed(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load("backy.things", name, BUILT_IN)
    assert caught.value.message == f"there is no thing {name!r}"
    assert caught.value.hint == "Built in: path, nested."


@pytest.mark.usefixtures("installed")
def test_an_installed_package_adds_to_what_is_built_in() -> None:
    assert store_class("tape").is_from_a_plugin  # type: ignore[attr-defined]


@pytest.mark.usefixtures("installed")
def test_an_installed_package_replaces_nothing_that_is_built_in() -> None:
    assert store_class("chunks") is ChunkStore


@pytest.mark.usefixtures("installed")
def test_a_group_has_only_its_own_names() -> None:
    with pytest.raises(ConfigError, match="there is no source 'tape'"):
        open_source({"type": "tape"})


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", ["broken", "wrong"])
def test_a_package_that_cannot_be_loaded_is_named(name: str) -> None:
    with pytest.raises(BackyError, match=name):
        store_class(name)


@pytest.mark.parametrize(
    "settings", [{}, {"type": None}, {"type": ["file"]}, {"disks": {"vda": "/x"}}], ids=repr
)
def test_a_source_without_a_type_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="the source has no type"):
        open_source(settings)


def test_nobody_imports_a_plug_in_but_by_its_name() -> None:
    [contract] = [
        each for each in PROJECT["tool"]["importlinter"]["contracts"] if each["id"] == "plug-ins"
    ]
    plug_ins = {each.partition(":")[0] for group in OFFERED.values() for each in group.values()}
    assert set(contract["protected_modules"]) == plug_ins
