"""The paths in a configuration are found without checking all of it, or left to who checks it."""

from pathlib import Path

import pytest

from backy.config.loader import ProblemsError, read_global
from backy.config.paths import KEYS, SitePaths, read_paths
from backy.config.settings import Global

DEFAULTS = SitePaths(Path("/srv/backy"), Path("/run/backy/backy.sock"))


def test_the_names_and_the_defaults_are_those_of_the_settings() -> None:
    aliases = {str(field.alias) for field in Global.model_fields.values()}
    assert aliases | set(Global.gone) == KEYS
    assert SitePaths(Global().base_dir, Global().socket) == SitePaths() == DEFAULTS


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("{}", DEFAULTS),
        ("global:", DEFAULTS),
        ("global: {}", DEFAULTS),
        ("global: {base-dir: }", DEFAULTS),
        ("global: {base-dir: /a, socket: '/b c'}", SitePaths(Path("/a"), Path("/b c"))),
        ("global: {nice: 5, telnet-port: 1, socket: /s}", SitePaths(socket=Path("/s"))),
        ("jobs: {}\nglobal: {socket: /s}\nnonsense: [{", SitePaths(socket=Path("/s"))),
    ],
)
def test_paths_are_those_that_the_settings_have(
    tmp_path: Path, text: str, paths: SitePaths
) -> None:
    (tmp_path / "backy.yaml").write_text(text)
    assert read_paths(tmp_path / "backy.yaml") == paths
    settings = read_global(tmp_path / "backy.yaml")
    assert SitePaths(settings.base_dir, settings.socket) == paths


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "global: [",
        "global: false",
        "global: 5",
        "global: [a]",
        "global: {base-dir: relative}",
        "global: {base-dir: 5}",
        "global: {base-dir: [/a]}",
        "global: {socket: true}",
        'global: {socket: "/a\\nb"}',
        "global: {basedir: /a}",
        "global: {base-dir: /a, base-dir: /b}",
    ],
)
def test_in_doubt_there_are_none_and_whoever_checks_all_says_why(tmp_path: Path, text: str) -> None:
    (tmp_path / "backy.yaml").write_text(text)
    assert read_paths(tmp_path / "backy.yaml") is None
    with pytest.raises(ProblemsError):
        read_global(tmp_path / "backy.yaml")


def test_a_file_that_is_missing_has_none(tmp_path: Path) -> None:
    assert read_paths(tmp_path / "backy.yaml") is None
