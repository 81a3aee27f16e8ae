#!/usr/bin/env python3
"""Measure the style of Python codebases and print a Markdown table, one row each.

    python measure_style.py DIR [DIR ...]        compare codebases
    python measure_style.py --files 10 DIR       largest files of one codebase
    python measure_style.py --functions 10 DIR   longest functions of one codebase
    python measure_style.py --classes 10 DIR     largest classes of one codebase

DIR is a checkout.  Its source is every module inside a package (a folder with
`__init__.py`, or any folder below one); where there is no package, the modules
at its root.  Its tests are the modules a test runner would collect.  Folders
named in NOT_SOURCE, and setup.py, count as neither.

How the figures are defined:

SLOC        physical lines that carry code: no blanks, comments or docstrings.
functions   their number; median, p90 and longest are SLOC from `def` to the
            last line, nested functions included; `@overload` is left out.
over 50     how many functions are longer than 50 SLOC.
tests       test SLOC divided by source SLOC.
typed       annotated parameters and return values, of all there are; `self`,
            `cls` and the return value of `__init__` are not asked for.
docstrings  public modules, classes and functions that have one.  Modules
            without code, and anything inside a function, are not asked.
comments    comments for each 100 SLOC, directives such as `# noqa` left out.
needs       mandatory run-time dependencies in pyproject.toml ("?": not there).

Only the standard library is used and nothing of the codebase is imported.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import statistics
import sys
import tokenize
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

NOT_SOURCE = {
    "benchmarks", "build", "ci", "contrib", "demos", "dist", "doc", "docs",
    "example", "examples", "lab", "node_modules", "scripts", "vendor", "_vendor",
    "venv",
}  # fmt: skip
TEST_FOLDERS = {"test", "tests", "testsuite"}
TEST_FILE = re.compile(r"test_.*|.*_test|tests?|conftest")
DIRECTIVE = re.compile(r"#\s*(noqa|type:|pragma|pylint|mypy|pyright|fmt|isort|!|-\*-)")
SILENT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT,
    tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER,
}  # fmt: skip

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
Documentable = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Sized:
    """Something that has a size: a file, a class or a function, and its SLOC."""

    name: str
    sloc: int


@dataclass(frozen=True)
class Module:
    """What was measured in one file."""

    path: str
    sloc: int
    comments: int
    functions: list[Sized]
    classes: list[Sized]
    slots: int
    slots_typed: int
    public: int
    public_documented: int


@dataclass(frozen=True)
class Codebase:
    """The modules of one checkout, measured."""

    name: str
    source: list[Module]
    tests: list[Module]
    dependencies: int | None

    @property
    def files(self) -> list[Sized]:
        return [Sized(m.path, m.sloc) for m in self.source]

    @property
    def functions(self) -> list[Sized]:
        return [f for m in self.source for f in m.functions]

    @property
    def classes(self) -> list[Sized]:
        return [c for m in self.source for c in m.classes]

    def total(self, count: Callable[[Module], int]) -> int:
        return sum(count(m) for m in self.source)


# Reading a checkout


def measure_codebase(root: Path) -> Codebase:
    """Measure every module below `root`.  Files that do not parse are named on stderr."""
    source: list[Module] = []
    tests: list[Module] = []
    for path in python_files(root):
        relative = path.relative_to(root)
        if is_test(relative):
            target = tests
        elif is_source(root, relative):
            target = source
        else:
            continue
        try:
            target.append(measure_module(path.read_bytes(), str(relative)))
        except (SyntaxError, tokenize.TokenError) as error:
            print(f"{path}: skipped, not Python 3: {error}", file=sys.stderr)
    return Codebase(root.resolve().name, source, tests, count_dependencies(root))


def python_files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*.py")):
        folders = path.relative_to(root).parts[:-1]
        if not any(f in NOT_SOURCE or f.startswith(".") for f in folders):
            yield path


def is_test(relative: Path) -> bool:
    return bool(TEST_FOLDERS & set(relative.parts[:-1]) or TEST_FILE.fullmatch(relative.stem))


def is_source(root: Path, relative: Path) -> bool:
    if relative.name == "setup.py":
        return False
    if has_package(root):
        return any((root / p / "__init__.py").exists() for p in relative.parents)
    return len(relative.parts) == 1


def has_package(root: Path) -> bool:
    packages = (p for pattern in ("*", "src/*") for p in root.glob(f"{pattern}/__init__.py"))
    return any(not is_test(p.relative_to(root)) for p in packages)


def count_dependencies(root: Path) -> int | None:
    """Mandatory run-time dependencies, or None where pyproject.toml does not list them."""
    try:
        tables = tomllib.loads((root / "pyproject.toml").read_text())
    except FileNotFoundError:
        return None
    project = tables.get("project", {})
    poetry = tables.get("tool", {}).get("poetry", {})
    if "dependencies" in poetry:
        return len(poetry["dependencies"].keys() - {"python"})
    if project and "dependencies" not in project.get("dynamic", ()):
        return len(project.get("dependencies", ()))
    return None


# Measuring one module


def measure_module(text: bytes, path: str) -> Module:
    """Raise SyntaxError or tokenize.TokenError where `text` is not Python 3."""
    tree = ast.parse(text)
    documentable = [n for n in ast.walk(tree) if isinstance(n, Documentable)]
    docstrings = {line for node in documentable for line in docstring_lines(node)}
    lines, comments = code_lines(text)
    lines -= docstrings

    def size(node: FunctionNode | ast.ClassDef) -> Sized:
        end = node.end_lineno or node.lineno
        sloc = sum(1 for line in range(node.lineno, end + 1) if line in lines)
        return Sized(f"{path}:{node.lineno} {node.name}", sloc)

    functions = [n for n in documentable if isinstance(n, FunctionNode) and not is_overload(n)]
    slots = [slot for owner, node in functions_with_owner(tree) for slot in type_slots(owner, node)]
    public = list(public_definitions(tree, has_code=bool(lines)))
    return Module(
        path=path,
        sloc=len(lines),
        comments=comments,
        functions=[size(n) for n in functions],
        classes=[size(n) for n in documentable if isinstance(n, ast.ClassDef)],
        slots=len(slots),
        slots_typed=sum(slots),
        public=len(public),
        public_documented=sum(ast.get_docstring(n) is not None for n in public),
    )


def code_lines(text: bytes) -> tuple[set[int], int]:
    """The numbers of the lines that carry code, and how many comments there are."""
    lines: set[int] = set()
    comments = 0
    for token in tokenize.tokenize(io.BytesIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments += not DIRECTIVE.match(token.string)
        elif token.type not in SILENT:
            lines.update(range(token.start[0], token.end[0] + 1))
    return lines, comments


def docstring_lines(node: Documentable) -> Iterable[int]:
    if ast.get_docstring(node, clean=False) is None:
        return ()
    first = node.body[0]
    return range(first.lineno, (first.end_lineno or first.lineno) + 1)


def functions_with_owner(
    node: ast.AST, owner: ast.ClassDef | None = None
) -> Iterator[tuple[ast.ClassDef | None, FunctionNode]]:
    """Every function below `node`, with the class whose method it is, if any."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FunctionNode):
            yield owner, child
            yield from functions_with_owner(child, None)
        elif isinstance(child, ast.ClassDef):
            yield from functions_with_owner(child, child)
        else:
            yield from functions_with_owner(child, owner)


def type_slots(owner: ast.ClassDef | None, node: FunctionNode) -> Iterator[bool]:
    """For each place that could carry an annotation, whether it does."""
    arguments = node.args
    positional = arguments.posonlyargs + arguments.args
    if owner and not has_decorator(node, "staticmethod"):
        positional = positional[1:]
    for argument in (*positional, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg):
        if argument:
            yield argument.annotation is not None
    if node.name != "__init__":
        yield node.returns is not None


def public_definitions(tree: ast.Module, *, has_code: bool) -> Iterator[Documentable]:
    if has_code:
        yield tree

    def below(node: ast.AST) -> Iterator[Documentable]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.ClassDef, FunctionNode)):
                if child.name.startswith("_") or is_overload(child):
                    continue
                yield child
                if isinstance(child, ast.ClassDef):
                    yield from below(child)
            elif isinstance(child, (ast.If, ast.Try)):
                yield from below(child)

    yield from below(tree)


def is_overload(node: FunctionNode | ast.ClassDef) -> bool:
    return has_decorator(node, "overload")


def has_decorator(node: FunctionNode | ast.ClassDef, name: str) -> bool:
    return any(ast.unparse(d).rpartition(".")[2] == name for d in node.decorator_list)


# Printing


HEADINGS = (
    "codebase", "files", "SLOC", "largest file", "largest class", "functions",
    "median", "p90", "longest", "over 50", "tests", "typed", "docstrings", "comments", "needs",
)  # fmt: skip


def row(codebase: Codebase) -> tuple[str, ...]:
    sloc = codebase.total(lambda m: m.sloc)
    lengths = sorted(f.sloc for f in codebase.functions)
    largest = max(codebase.files, key=by_sloc, default=Sized("-", 0))
    god = max(codebase.classes, key=by_sloc, default=Sized("- -", 0))
    return (
        codebase.name,
        str(len(codebase.source)),
        f"{sloc:,}",
        f"{short_path(largest.name)} {largest.sloc:,}",
        f"{god.name.split()[-1]} {god.sloc:,}",
        f"{len(lengths):,}",
        f"{statistics.median(lengths or [0]):g}",
        str(lengths[int(len(lengths) * 0.9)] if lengths else 0),
        str(max(lengths, default=0)),
        str(sum(length > 50 for length in lengths)),
        f"{sum(m.sloc for m in codebase.tests) / sloc:.2f}" if sloc else "-",
        percent(codebase.total(lambda m: m.slots_typed), codebase.total(lambda m: m.slots)),
        percent(codebase.total(lambda m: m.public_documented), codebase.total(lambda m: m.public)),
        f"{100 * codebase.total(lambda m: m.comments) / sloc:.0f}" if sloc else "-",
        "?" if codebase.dependencies is None else str(codebase.dependencies),
    )


def short_path(name: str) -> str:
    """The file name, with its folder where the file name alone says nothing."""
    path = Path(name)
    return f"{path.parent.name}/{path.name}" if path.stem.startswith("__") else path.name


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


def by_sloc(item: Sized) -> int:
    return item.sloc


def print_table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    headings = tuple(headings)
    print("| " + " | ".join(headings) + " |")
    print("|" + " --- |" * len(headings))
    for cells in rows:
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dirs", nargs="+", type=Path, metavar="DIR")
    listing = parser.add_mutually_exclusive_group()
    for name in ("files", "functions", "classes"):
        listing.add_argument(f"--{name}", type=int, metavar="N", help=f"list the N largest {name}")
    arguments = parser.parse_args()
    for missing in (d for d in arguments.dirs if not d.is_dir()):
        parser.error(f"{missing} is not a directory; give the root of a checkout")

    codebases = [measure_codebase(d) for d in arguments.dirs]
    for name in ("files", "functions", "classes"):
        if limit := getattr(arguments, name):
            for codebase in codebases:
                ranked = sorted(getattr(codebase, name), key=by_sloc, reverse=True)[:limit]
                rows = ((item.name, str(item.sloc)) for item in ranked)
                print_table((f"{codebase.name}: {name}", "SLOC"), rows)
            return
    print_table(HEADINGS, (row(c) for c in codebases))


if __name__ == "__main__":
    main()
