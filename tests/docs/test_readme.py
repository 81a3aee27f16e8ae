"""What README.md says exists does: sources, configuration, picture."""

import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml

from backy.config.loader import load
from backy.sources import open_source
from tests.docs import markdown

DOCS = markdown.PROJECT / "docs"
README = (markdown.PROJECT / "README.md").read_text()
PICTURES = [pytest.param(path, id=path.name) for path in DOCS.glob("pictures/*")]


def sources() -> set[str]:
    """The types of sources; where two names are one class, the one that its module has."""
    project = tomllib.loads((markdown.PROJECT / "pyproject.toml").read_text())
    points = project["project"]["entry-points"]["backy.sources"]
    by_class: dict[str, list[str]] = {}
    for name, place in points.items():
        by_class.setdefault(place, []).append(name)
    return {min(names, key=len) for names in by_class.values()}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(markdown.section(README, "Where data comes from"), id="README"),
        pytest.param((DOCS / "sources" / "README.md").read_text(), id="docs/sources"),
    ],
)
def test_the_table_of_sources_has_all_that_there_are_and_no_other(text: str) -> None:
    cells = [re.fullmatch(r"\[`(\w+)`\]\(.*\)", row["source"]) for row in markdown.table(text)]
    assert sorted(cell[1] if cell else "" for cell in cells) == sorted(sources())


def test_every_source_has_its_page() -> None:
    assert {path.stem for path in DOCS.glob("sources/*.md")} - {"README", "proxmox"} == sources()


def examples() -> list[object]:
    """Each configuration that a page shows."""
    return [
        pytest.param(block.text, id=f"{page.relative_to(markdown.PROJECT)}:{block.line}")
        for page in markdown.documents()
        for block in markdown.blocks(page.read_text())
        if block.language == "yaml" and "scrape_configs" not in block.text
    ]


@pytest.mark.parametrize("text", examples())
def test_every_configuration_on_a_page_is_valid(text: str, tmp_path: Path) -> None:
    shown = yaml.safe_load(text)
    schedules = {job["schedule"] for job in shown.get("jobs", {}).values()}
    known = {name: {"daily": {"interval": "1d", "keep": 1}} for name in schedules}
    shown["schedules"] = known | shown.get("schedules", {})
    (tmp_path / "backy.yaml").write_text(yaml.safe_dump(shown))
    assert load(tmp_path / "backy.yaml", open_source).problems == ()


def test_the_readme_shows_the_picture_of_the_flow() -> None:
    assert "](docs/pictures/flow.svg)" in README.partition("\n## ")[0]


@pytest.mark.parametrize("path", PICTURES)
def test_a_picture_is_small_has_a_title_and_needs_nothing_from_elsewhere(path: Path) -> None:
    assert path.stat().st_size < 10_000
    picture = ET.fromstring(path.read_bytes())
    title = picture.find("{http://www.w3.org/2000/svg}title")
    assert title is not None
    assert title.text
    text = path.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.findall(r"https?:|<image|<script|@import|href=", text)


@pytest.mark.parametrize("path", PICTURES)
def test_what_a_picture_says_is_readable_on_white_and_on_black(path: Path) -> None:
    colours = set(re.findall(r"#[0-9a-f]{6}", path.read_text()))
    outside = [
        each for each in colours if min(contrast(each, "#ffffff"), contrast(each, "#000000")) > 4
    ]
    box, text = sorted(colours - set(outside), key=lambda each: contrast(each, "#000000"))[::-1]
    assert len(outside) == 1
    assert contrast(box, text) > 7


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2, from 1 to 21."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    values = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return sum(part * value for part, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
