"""Hold the code to the house's sizes: python -m tools.check_sizes [DIR].

Prints the row of figures that tools/measure_style.py defines and what each budget has left, then
each finding with its place.  A finding makes the exit code 1; a warning, which names what is near
its limit while there is still room to plan a split, does not.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grimp

from tools.measure_style import (
    HEADINGS,
    Codebase,
    Module,
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
WARN_PERCENT = 80
MAX_FUNCTION_P90 = 20
MAX_FUNCTION_MEDIAN = 6
MIN_TESTS = 1.5
PACKAGE = "src/backy/"


@dataclass(frozen=True)
class Budget:
    """How many SLOC the files and folders of `places`, relative to the package, may have together.

    A file counts to the budget that names its longest match.
    """

    name: str
    at_most: int
    places: tuple[str, ...]


_NEW_OPERATIONS = (
    "boot", "boot_plan", "browse", "drill", "mount", "plan", "replicate", "restore_all", "serve",
)  # fmt: skip


# Argued for in docs/decisions/0011-size.md, which has the same table.
BUDGETS = (
    Budget(
        "core",
        6655,
        (
            "__init__.py", "__main__.py", "errors.py", "plugins.py", "units.py",
            "model/", "system/", "image/", "stores/", "repository/", "operations/",
        ),
    ),
    Budget("config, policy, monitoring", 1005, ("config/", "policy/", "monitoring/")),
    Budget("daemon", 980, ("daemon/",)),
    Budget("cluster", 0, ("cluster/",)),
    Budget("cli", 1960, ("cli/", "model/answers.py", "model/messages.py")),
    Budget("api", 0, ("api/",)),
    Budget("access", 0, ("access/",)),
    Budget("web", 0, ("web/",)),
    Budget("nbd", 972, ("nbd/",)),
    Budget("clients", 1307, ("clients/",)),
    Budget("sources", 1214, ("sources/",)),
    Budget("targets", 693, ("targets/",)),
    Budget("objects", 0, ("stores/objects/",)),
    Budget("new operations", 714, tuple(f"operations/{name}.py" for name in _NEW_OPERATIONS)),
)  # fmt: skip
MAX_SOURCE = 15_500

# What a restore depends on: this module, every module that it imports, and the plug-ins that every
# restore needs. Drafts and what purges need are in modules beside the stores; a target that another
# program serves is loaded only if somebody names it.
RESTORE = "backy.operations.restore"
RESTORE_PLUGINS = (
    "backy.stores.chunks",
    "backy.stores.images",
    "backy.targets.device",
    "backy.targets.file",
    "backy.targets.stream",
)
MAX_RESTORE = 4800


def main() -> int:
    """Check the checkout that the command line names, else the current folder."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    codebase = measure_codebase(root)
    print_table(HEADINGS, [row(codebase)])
    print()
    needed = needed_by_restore(codebase.source)
    restore = ("what a restore depends on", f"{needed:,}", f"{MAX_RESTORE:,}")
    print_table(("budget", "SLOC", "at most"), [restore, *budget_rows(codebase.source)])
    found = list(findings(codebase, root))
    if needed > MAX_RESTORE:
        found.append(f"what a restore depends on: {needed} SLOC, at most {MAX_RESTORE}")
    for line in (*found, *warnings(codebase)):
        print(line)
    return 1 if found else 0


def findings(codebase: Codebase, root: Path) -> Iterator[str]:
    """One sentence for each limit that `codebase`, the checkout at `root`, does not hold."""
    for kind, items, limit in limited(codebase):
        for item in larger(items, limit):
            yield f"{item.name}: {kind} of {item.sloc} SLOC, at most {limit}"
    yield from spread(sorted(function.sloc for function in codebase.functions))
    yield from over_budget(codebase.source)
    yield from too_few_tests(codebase)
    for module in codebase.source:
        if module.slots_typed < module.slots:
            yield from untyped(root, module.path)


def warnings(codebase: Codebase) -> Iterator[str]:
    """One sentence for each file, class and function that is near its limit, but not over it."""
    for kind, items, limit in limited(codebase):
        for item in larger(items, limit * WARN_PERCENT // 100):
            if item.sloc <= limit:
                yield f"warning: {item.name}: {kind} of {item.sloc} SLOC of {limit}; plan a split"


def limited(codebase: Codebase) -> Iterator[tuple[str, list[Sized], int]]:
    """Each kind of thing that has a limit: its name, all of it, the limit."""
    yield "file", codebase.files, MAX_FILE
    yield "class", codebase.classes, MAX_CLASS
    yield "function", codebase.functions, MAX_FUNCTION


def larger(items: Iterable[Sized], limit: int) -> Iterator[Sized]:
    """Those of `items` that are over `limit`, the largest first."""
    for item in sorted(items, key=lambda item: item.sloc, reverse=True):
        if item.sloc > limit:
            yield item


def spread(lengths: list[int]) -> Iterator[str]:
    """The limits on all functions together; `lengths` ascend."""
    if not lengths:
        return
    if (median := statistics.median(lengths)) > MAX_FUNCTION_MEDIAN:
        yield f"all functions: median of {median:g} SLOC, at most {MAX_FUNCTION_MEDIAN}"
    if (p90 := lengths[int(len(lengths) * 0.9)]) > MAX_FUNCTION_P90:
        yield f"all functions: one in ten has {p90} SLOC or more, at most {MAX_FUNCTION_P90}"


def over_budget(source: list[Module]) -> Iterator[str]:
    """The limits on the folders, and each file to which none of them applies."""
    spent = spent_by_budget(source)
    for budget in BUDGETS:
        if spent[budget] > budget.at_most:
            yield f"{budget.name}: {spent[budget]} SLOC, at most {budget.at_most}"
    for module in source:
        if budget_of(module.path) is None:
            yield f"{module.path}: in no budget; place it in tools/check_sizes.py"


def budget_rows(source: list[Module]) -> Iterator[tuple[str, str, str]]:
    """What each budget, and all together, has spent of what it may."""
    spent = spent_by_budget(source)
    for budget in BUDGETS:
        yield budget.name, f"{spent[budget]:,}", f"{budget.at_most:,}"
    yield "together", f"{sum(spent.values()):,}", f"{MAX_SOURCE:,}"


def needed_by_restore(source: list[Module]) -> int:
    """The SLOC of all modules that a restore may import, those of the installed package's graph."""
    graph = grimp.build_graph("backy", exclude_type_checking_imports=True)
    folders = {name for folder in RESTORE_PLUGINS for name in graph.find_descendants(folder)}
    plugins = {*RESTORE_PLUGINS, *folders}
    needed = {RESTORE, *plugins}.union(*map(graph.find_upstream_modules, (RESTORE, *plugins)))
    return sum(module.sloc for module in source if _imported_as(module.path) in needed)


def _imported_as(path: str) -> str:
    """The name by which the file of the checkout is imported: backy.units of src/backy/units.py."""
    return path.removeprefix("src/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def spent_by_budget(source: list[Module]) -> dict[Budget, int]:
    """The SLOC of the files of each budget."""
    spent = dict.fromkeys(BUDGETS, 0)
    for module in source:
        if budget := budget_of(module.path):
            spent[budget] += module.sloc
    return spent


def budget_of(path: str) -> Budget | None:
    """The budget that a file of the checkout counts to."""
    inside = path.removeprefix(PACKAGE)
    matches = [
        (len(place), budget)
        for budget in BUDGETS
        for place in budget.places
        if inside == place or (place.endswith("/") and inside.startswith(place))
    ]
    return max(matches, key=lambda match: match[0])[1] if matches else None


def too_few_tests(codebase: Codebase) -> Iterator[str]:
    """The limit on the tests, which is a lower one."""
    source = codebase.total(lambda module: module.sloc)
    tests = sum(module.sloc for module in codebase.tests)
    if tests < MIN_TESTS * source:
        wanted = f"at least {MIN_TESTS} times the {source} of the source"
        yield f"all tests: {tests} SLOC, {wanted}"


def untyped(root: Path, path: str) -> Iterator[str]:
    """One sentence for each function in `path` that leaves an annotation out."""
    for owner, node in functions_with_owner(ast.parse((root / path).read_bytes())):
        if not all(type_slots(owner, node)):
            yield f"{path}:{node.lineno} {node.name}: parameters or return value without a type"


if __name__ == "__main__":
    sys.exit(main())
