"""Read the project's Markdown: headings, tables, links and code blocks."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(.*)$")
_HEADING = re.compile(r"^(#+) +(.+?) *$")
_COMMENT = re.compile(r"^<!-- stage: (.+) -->$")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, its text, the number of its first line."""

    language: str
    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Scene:
    """Blocks that share a stage, which a comment `<!-- stage: … -->` asks for."""

    stage: str
    blocks: tuple[Block, ...]

    @property
    def line(self) -> int:
        """The first line of the first block."""
        return self.blocks[0].line


def documents() -> list[Path]:
    """All pages of the project."""
    return sorted(
        [*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md"), *PROJECT.glob("benchmarks/*.md")]
    )


def _parts(text: str) -> Iterator[tuple[int, str, Block | None]]:
    """Each line as (number, line, None), each fenced block as (number, "", block)."""
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        if not (fence := _FENCE.match(line)):
            yield number, line, None
            continue
        inside = []
        for _, each in lines:
            if each == "```":
                break
            inside.append(each)
        yield number, "", Block(fence[1], "\n".join(inside), number + 1)


def prose(text: str) -> str:
    """The page without its fenced blocks."""
    return "\n".join(line for _, line, block in _parts(text) if not block)


def blocks(text: str) -> list[Block]:
    """All fenced blocks."""
    return [block for _, _, block in _parts(text) if block]


def scenes(text: str) -> list[Scene]:
    """All blocks in `sh` or `console` below a stage comment.

    `same, …` stays on the stage: what else it asks for becomes a block in the language "stage".
    """
    found: list[tuple[str, list[Block]]] = []
    for number, line, block in _parts(text):
        comment = _COMMENT.match(line)
        if comment and comment[1].startswith("same, "):
            found[-1][1].append(Block("stage", comment[1].removeprefix("same, "), number))
        elif comment:
            found.append((comment[1], []))
        elif block and block.language in {"sh", "console"} and found:
            found[-1][1].append(block)
    return [Scene(stage, tuple(inside)) for stage, inside in found if inside]


def scripts(page: str) -> dict[str, str]:
    """The blocks in `bash` of a page in docs/, by the name that the second line of each has."""
    text = (PROJECT / "docs" / page).read_text()
    found = [block.text for block in blocks(text) if block.language == "bash"]
    return {script.split("\n")[1].split()[1].rstrip(":"): f"{script}\n" for script in found}


def headings(text: str) -> list[str]:
    """The text of each heading, in order."""
    return [match[2] for line in prose(text).splitlines() if (match := _HEADING.match(line))]


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one of the same or a higher level."""
    found: list[str] = []
    level = 0
    fenced = False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        match = None if fenced else _HEADING.match(line)
        if match and level and len(match[1]) <= level:
            break
        if match and match[2] == heading:
            level = len(match[1])
        elif level:
            found.append(line)
    if not level:
        raise LookupError(f"there is no heading {heading!r}")
    return "\n".join(found)


def table(text: str) -> list[dict[str, str]]:
    """The rows of the first table, by column; backticks are taken off a cell that is all code."""
    rows: list[list[str]] = []
    for line in prose(text).splitlines():
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line.strip()[1:-1])
            rows.append([_plain(cell) for cell in cells])
        elif rows:
            break
    if not rows:
        raise LookupError("there is no table")
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def _plain(cell: str) -> str:
    cell = cell.strip().replace("\\|", "|")
    return cell[1:-1] if re.fullmatch(r"`[^`]+`", cell) else cell


def links(text: str) -> list[str]:
    """Where the links of a page lead, and which pictures it shows."""
    return _LINK.findall(prose(text))


def anchor(heading: str) -> str:
    """The name that a heading has in an address, by GitHub's rule."""
    kept = re.sub(r"[^\w\- ]", "", heading.lower())
    return kept.replace(" ", "-")
