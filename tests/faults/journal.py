"""A model of what a power cut can leave: every effect that passed the disk door, durable or not.

An effect is volatile until it is synced: content by fsync of its file, a name by fsync of its
folder (a rename between two folders: of both), everything by the barrier. `Journal.after_cut`
rebuilds a file tree from the effects before a moment: all that were durable by then, and a seeded
random choice of the others, in which renames may be reordered and writes torn. That is more than
a journalling file system does to us, as SQLite's tests do it
(https://sqlite.org/testing.html, "crash testing").
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

SECTOR = 512  # bytes that a medium writes whole or not at all


class Survival(Enum):
    """Which volatile effects outlive the cut."""

    NONE = "none"
    ALL = "all"
    SOME = "some"
    TORN = "torn"


@dataclass
class Node:
    """A file or a folder, whatever its names."""

    is_folder: bool
    content: bytearray = field(default_factory=bytearray)
    names: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Effect:
    """One change. `content` belongs to a file, `links` to folders: (folder, name, node).

    A node of None means that the name went. A rename is one effect with two links, so that both
    happen or neither.
    """

    file: int | None = None
    offset: int = 0
    content: bytes = b""
    size: int | None = None
    links: tuple[tuple[int, str, int | None], ...] = ()


@dataclass(frozen=True)
class Sync:
    """What is durable from here on: one file's content, one folder's names, or everything."""

    node: int | None


class Journal:
    """The effects on the tree below `root`, in order, and the tree as it looks to the system."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.nodes: list[Node] = [Node(is_folder=True)]
        self.entries: list[Effect | Sync] = []
        self._take_in(root, 0)
        self.base = [Node(n.is_folder, bytearray(n.content), dict(n.names)) for n in self.nodes]

    def _take_in(self, folder: Path, number: int) -> None:
        for path in sorted(folder.iterdir()):
            child = self.new_node(is_folder=path.is_dir())
            self.nodes[number].names[path.name] = child
            if path.is_dir():
                self._take_in(path, child)
            else:
                self.nodes[child].content[:] = path.read_bytes()

    def new_node(self, *, is_folder: bool) -> int:
        """A node without a name."""
        self.nodes.append(Node(is_folder))
        return len(self.nodes) - 1

    def find(self, path: Path) -> int | None:
        """The node that a path names now; None where there is none, or outside `root`."""
        if path != self.root and self.root not in path.parents:
            return None
        number = 0
        for part in path.relative_to(self.root).parts:
            found = self.nodes[number].names.get(part)
            if found is None:
                return None
            number = found
        return number

    def record(self, effect: Effect) -> None:
        """Take an effect in, and apply it to the running system's view."""
        self.entries.append(effect)
        _apply(self.nodes, effect)

    def sync(self, node: int | None) -> None:
        """Everything so far of that node (or of all) is durable."""
        self.entries.append(Sync(node))

    def missed(self) -> list[str]:
        """Where the real tree is not what the effects make: one went past the recording."""
        here, there = _tree(self.nodes, 0), {}
        for path in self.root.rglob("*"):
            name = str(path.relative_to(self.root))
            there[name] = None if path.is_dir() else path.read_bytes()
        return sorted(
            name
            for name in here.keys() | there.keys()
            if (name in here, here.get(name)) != (name in there, there.get(name))
        )

    def after_cut(self, moment: int, survival: Survival, seed: int, target: Path) -> None:
        """Write to `target` what is left when the power goes after `moment` entries."""
        chance = random.Random(f"{moment} {survival} {seed}")
        nodes = [Node(n.is_folder, bytearray(n.content), dict(n.names)) for n in self.base]
        nodes += [Node(n.is_folder) for n in self.nodes[len(nodes) :]]
        entries = self.entries[:moment]
        for entry, is_durable in zip(entries, _durable(entries), strict=True):
            if isinstance(entry, Sync):
                continue
            survivor = entry if is_durable else _survivor(entry, survival, chance)
            if survivor:
                _apply(nodes, survivor)
        _write(nodes, 0, target)


def _durable(entries: Sequence[Effect | Sync]) -> list[bool]:
    """Whether each effect was synced by one of the later entries."""
    found: list[bool] = []
    synced: set[int | None] = set()
    for entry in reversed(entries):
        if isinstance(entry, Sync):
            synced.add(entry.node)
            found.append(True)
        else:
            folders = {folder for folder, _, _ in entry.links}
            needed = folders if entry.file is None else {entry.file}
            found.append(None in synced or needed <= synced)
    return found[::-1]


def _survivor(effect: Effect, survival: Survival, chance: random.Random) -> Effect | None:
    """What is left of a volatile effect."""
    if survival is Survival.NONE:
        return None
    if survival is Survival.ALL:
        return effect
    if chance.random() < 0.5:
        return None
    if survival is Survival.TORN and effect.content:
        sectors = -(-len(effect.content) // SECTOR)
        first, end = sorted(chance.randint(0, sectors) * SECTOR for _ in range(2))
        return Effect(effect.file, effect.offset + first, effect.content[first:end])
    return effect


def _apply(nodes: list[Node], effect: Effect) -> None:
    if effect.file is not None:
        content = nodes[effect.file].content
        if effect.size is not None:
            del content[effect.size :]
            content.extend(bytes(effect.size - len(content)))
        elif effect.content:
            end = effect.offset + len(effect.content)
            content.extend(bytes(max(0, end - len(content))))
            content[effect.offset : end] = effect.content
    for folder, name, node in effect.links:
        if node is None:
            nodes[folder].names.pop(name, None)
        else:
            nodes[folder].names[name] = node


def _tree(nodes: list[Node], number: int, above: str = "") -> dict[str, bytes | None]:
    """Every path with its content; folders have None."""
    found: dict[str, bytes | None] = {}
    for name, child in nodes[number].names.items():
        is_folder = nodes[child].is_folder
        found[above + name] = None if is_folder else bytes(nodes[child].content)
        if is_folder:
            found |= _tree(nodes, child, f"{above}{name}/")
    return found


def _write(nodes: list[Node], number: int, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for name, child in nodes[number].names.items():
        if nodes[child].is_folder:
            _write(nodes, child, target / name)
        else:
            (target / name).write_bytes(nodes[child].content)
