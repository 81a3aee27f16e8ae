"""Hold the code to the house's sizes: python -m tools.check_sizes [DIR].

Prints the row of figures that tools/measure_style.py defines, then each thing that is over its
limit, with its place.  Exits with 1 where there is one.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from tools.measure_style import (
    HEADINGS,
    Codebase,
    Sized,
    functions_with_owner,
    measure_codebase,
    print_table,
    row,
    type_slots,
)

MAX_FILE = 350
MAX_CLASS = 200
MAX_FUNCTION = 50
MAX_FUNCTION_P90 = 20
MAX_FUNCTION_MEDIAN = 6
MAX_SOURCE = 7000  # what everybody runs; docs/decisions/0011-size.md
MAX_PLUG_INS = 2000
PLUG_INS = ("backy/nbd/", "backy/sources/")
NO_PLUG_INS = ("__init__.py", "backy/sources/file.py")
MIN_TESTS = 1.5


def main() -> int:
    """Check the checkout that the command line names, else the current folder."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    codebase = measure_codebase(root)
    print_table(HEADINGS, [row(codebase)])
    found = list(findings(codebase, root))
    for finding in found:
        print(finding)
    return 1 if found else 0


def findings(codebase: Codebase, root: Path) -> Iterator[str]:
    """One sentence for each limit that `codebase`, the checkout at `root`, does not hold."""
    yield from too_large("file", codebase.files, MAX_FILE)
    yield from too_large("class", codebase.classes, MAX_CLASS)
    yield from too_large("function", codebase.functions, MAX_FUNCTION)
    yield from spread(sorted(function.sloc for function in codebase.functions))
    yield from totals(codebase)
    for module in codebase.source:
        if module.slots_typed < module.slots:
            yield from untyped(root, module.path)


def too_large(kind: str, items: Iterable[Sized], limit: int) -> Iterator[str]:
    """One sentence for each of `items` that is over `limit`, the largest first."""
    for item in sorted(items, key=lambda item: item.sloc, reverse=True):
        if item.sloc > limit:
            yield f"{item.name}: {kind} of {item.sloc} SLOC, at most {limit}"


def spread(lengths: list[int]) -> Iterator[str]:
    """The limits on all functions together; `lengths` ascend."""
    if not lengths:
        return
    if (median := statistics.median(lengths)) > MAX_FUNCTION_MEDIAN:
        yield f"all functions: median of {median:g} SLOC, at most {MAX_FUNCTION_MEDIAN}"
    if (p90 := lengths[int(len(lengths) * 0.9)]) > MAX_FUNCTION_P90:
        yield f"all functions: one in ten has {p90} SLOC or more, at most {MAX_FUNCTION_P90}"


def totals(codebase: Codebase) -> Iterator[str]:
    """The limits on the source as a whole and on its tests."""
    source = codebase.total(lambda module: module.sloc)
    plug_ins = codebase.total(lambda module: module.sloc if is_plug_in(module.path) else 0)
    tests = sum(module.sloc for module in codebase.tests)
    print(f"\n{source - plug_ins} SLOC for all, {plug_ins} in plug-ins for storages")
    if source - plug_ins > MAX_SOURCE:
        yield f"all source but plug-ins: {source - plug_ins} SLOC, at most {MAX_SOURCE}"
    if plug_ins > MAX_PLUG_INS:
        yield f"all plug-ins: {plug_ins} SLOC, at most {MAX_PLUG_INS}"
    if tests < MIN_TESTS * source:
        wanted = f"at least {MIN_TESTS} times the {source} of the source"
        yield f"all tests: {tests} SLOC, {wanted}"


def is_plug_in(path: str) -> bool:
    """Whether only those load a module who name its storage."""
    return any(each in path for each in PLUG_INS) and not path.endswith(NO_PLUG_INS)


def untyped(root: Path, path: str) -> Iterator[str]:
    """One sentence for each function in `path` that leaves an annotation out."""
    for owner, node in functions_with_owner(ast.parse((root / path).read_bytes())):
        if not all(type_slots(owner, node)):
            yield f"{path}:{node.lineno} {node.name}: parameters or return value without a type"


if __name__ == "__main__":
    sys.exit(main())
