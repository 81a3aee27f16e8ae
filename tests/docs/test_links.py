"""Every link between the pages leads somewhere, and every page can be found."""

import re
from pathlib import Path

import pytest

from tests.docs import markdown

DOCS = markdown.PROJECT / "docs"
PAGES = [
    pytest.param(page, id=str(page.relative_to(markdown.PROJECT))) for page in markdown.documents()
]


def anchors(page: Path) -> set[str]:
    return {markdown.anchor(heading) for heading in markdown.headings(page.read_text())}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    dead = []
    for link in markdown.links(page.read_text()):
        path, _, anchor = link.partition("#")
        if "://" in path:
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert not dead


# A decision may name what was there when it was made.
TODAY = [page for page in PAGES if not str(page.id).startswith("docs/decisions")]


@pytest.mark.parametrize("page", TODAY)
def test_files_that_a_page_names_exist(page: Path) -> None:
    places = "benchmarks|contrib|docs|packaging|requirements|src|tests|tools"
    named = re.findall(rf"(?<![\w/.~-])(?:{places})/[\w./-]*\w", page.read_text())
    assert [each for each in named if not (markdown.PROJECT / each).exists()] == []


def test_the_index_of_the_docs_names_every_page() -> None:
    linked = {
        (DOCS / link.partition("#")[0]).resolve()
        for link in markdown.links((DOCS / "README.md").read_text())
    }
    pages = set(DOCS.glob("**/*.md")) - {DOCS / "README.md"}
    assert sorted(pages - linked) == []


def test_the_readme_begins_with_a_restore_without_backy() -> None:
    headings = markdown.headings((markdown.PROJECT / "README.md").read_text())
    assert headings[1] == "How do I get my data back without backy?"
