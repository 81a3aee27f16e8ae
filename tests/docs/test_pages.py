"""What the pages tell an operator to type works, and prints what they say."""

from pathlib import Path

import pytest

from tests.docs import markdown
from tests.docs.stage import Stage, session, steady
from tests.lab.volumes import Mounts

PAGES = ["README.md", "docs/commands.md", "docs/formats.md", "docs/reliability.md"]
PAGES += ["docs/disaster.md", "docs/fleet.md", "docs/mount.md", "docs/unattended.md"]
SCENES = [
    pytest.param(scene, id=f"{page}:{scene.line}")
    for page in PAGES
    for scene in markdown.scenes((markdown.PROJECT / page).read_text())
]


class Stages:
    """Stages with a repository, each made once: to copy one is much quicker."""

    def __init__(self, chunks: Path, mounts: Mounts) -> None:
        self._chunks = chunks
        self._mounts = mounts
        self._made: dict[str, Stage] = {}

    def with_store(self, store: str) -> Stage:
        if store not in self._made:
            made = Stage(self._chunks if store == "chunks" else self._mounts["xfs"] / "pages")
            made.make()
            made.prepare(store)
            self._made[store] = made
        return self._made[store]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory, mounts: Mounts) -> Stages:
    return Stages(tmp_path_factory.mktemp("pages"), mounts)


@pytest.fixture
def stage(request: pytest.FixtureRequest, tmp_path: Path, mounts: Mounts, stages: Stages) -> Stage:
    scene = request.getfixturevalue("scene")
    first, *others = scene.stage.split(", ")
    root = mounts["xfs"] / tmp_path.name if "images" in scene.stage else tmp_path
    if first in {"chunks", "images"}:
        made = stages.with_store(first).copied(root)
    else:
        made = Stage(root)
        made.make()
        made.prepare(first)
    for word in others:
        made.prepare(word)
    return made


@pytest.mark.parametrize("scene", SCENES)
def test_the_commands_of_a_page_work_and_print_what_it_shows(
    scene: markdown.Scene, stage: Stage
) -> None:
    for block in scene.blocks:
        promised, came = stage.play(block)
        assert came == promised, f"the block in line {block.line}"


@pytest.mark.parametrize("page", PAGES)
def test_every_shell_block_of_a_page_is_run(page: str) -> None:
    text = (markdown.PROJECT / page).read_text()
    shell = [block for block in markdown.blocks(text) if block.language in {"sh", "console"}]
    played = [block for scene in markdown.scenes(text) for block in scene.blocks]
    run = [block for block in played if block.language != "stage"]
    assert shell == run
    assert run


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("20261123T004938Z-x7k2", "20270101T000000Z-0000", id="ids"),
        pytest.param("12.5 MiB in 0.1 s", "900 KiB in 12.0 s", id="sizes-and-times"),
        pytest.param("ab/" + "ab" * 32, "00/" + "00" * 32, id="chunks"),
        pytest.param("a  b", "a    b", id="widths"),
    ],
)
def test_output_is_compared_without_what_differs_from_run_to_run(one: str, other: str) -> None:
    assert steady(one) == steady(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("trusted", "distrusted", id="words"),
        pytest.param("1 2", "1", id="how-many-numbers"),
        pytest.param("a\nb", "a b", id="lines"),
    ],
)
def test_all_else_in_the_output_is_compared(one: str, other: str) -> None:
    assert steady(one) != steady(other)


def test_a_session_is_commands_with_their_output() -> None:
    text = "$ one \\\n    two\nsaid\n$ three\n"
    assert session(text) == [("one \\\n    two", "said\n"), ("three", "")]
