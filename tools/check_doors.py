"""Hold what ruff's banned-api cannot: python -m tools.check_doors [DIR].

Only `backy.system.files` and `folders` open and change files, and only `backy.system.process`,
`async_process` and `signals` start programs and deal with signals.  Ruff bans the functions of
modules everywhere else, by the list in pyproject.toml.  It cannot see the methods of
`pathlib.Path`, and its exception for the two doors is all or nothing.  So this finds, in src/:

- calls of the built-in `open`, which the list cannot name;
- calls of methods that only `pathlib.Path` has, and that write: `path.write_text(...)`;
- in each door, what the list gives to the other door alone.

Methods are told by name and number of arguments, not by type.  A class of ours should not name a
method like one of these; functions of the doors, and their classes, may.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

FILES, PROGRAMS = "backy.system.files", "backy.system.process"  # as the reasons in the list say
DOORS = {
    "system/files.py": FILES,
    "system/folders.py": FILES,
    "system/async_process.py": PROGRAMS,
    "system/detached.py": PROGRAMS,
    "system/process.py": PROGRAMS,
    "system/signals.py": PROGRAMS,
    "system/standard_streams.py": FILES,
}
WRITING_METHODS = {
    "chmod", "hardlink_to", "lchmod", "mkdir", "rename", "rmdir", "symlink_to", "touch", "unlink",
    "write_bytes", "write_text",
}  # fmt: skip


def main() -> int:
    """Check the checkout that the command line names, else the current folder."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    banned = banned_names(root)
    found = [
        f"{path.relative_to(root)}:{finding}"
        for path in sorted(root.glob("src/**/*.py"))
        for finding in findings(ast.parse(path.read_bytes()), door_of(path), banned)
    ]
    for finding in found:
        print(finding)
    return 1 if found else 0


def door_of(path: Path) -> str | None:
    """The door that a module belongs to, if it does."""
    return DOORS.get(f"{path.parent.name}/{path.name}")


def banned_names(root: Path) -> dict[str, str]:
    """The dotted names that pyproject.toml bans, each with the reason."""
    tables = tomllib.loads((root / "pyproject.toml").read_text())
    api = tables["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    return {name: ban["msg"] for name, ban in api.items()}


def findings(tree: ast.Module, door: str | None, banned: dict[str, str]) -> Iterator[str]:
    """The line, a colon and what is wrong there, for each violation in one module.

    `door` is the name of the module where it is one of the doors.
    """
    modules = imported_names(tree)
    for node in ast.walk(tree):
        if door:
            yield from beyond_its_half(node, door, modules, banned)
        if door != FILES and isinstance(node, ast.Call) and writes_a_file(node, modules):
            yield f"{node.lineno}: {ast.unparse(node.func)}: only backy.system.files changes files"


def beyond_its_half(
    node: ast.AST, door: str, modules: dict[str, str], banned: dict[str, str]
) -> Iterator[str]:
    """What `node` imports or names that is banned and not left to `door`."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        names = [prefix for alias in node.names for prefix in prefixes(full_name(node, alias))]
    elif isinstance(node, ast.Attribute):
        names = [dotted_name(node, modules)]
    else:
        return
    for name in names:
        if name in banned and door not in banned[name]:
            yield f"{node.lineno}: {name}: {banned[name]}"


def imported_names(tree: ast.Module) -> dict[str, str]:
    """What each imported name of a module stands for, dotted and in full."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                name = full_name(node, alias)
                if isinstance(node, ast.Import) and not alias.asname:
                    # `import a.b` gives only the name `a`.
                    name = name.partition(".")[0]
                    names[name] = name
                else:
                    names[alias.asname or alias.name] = name
    return names


def full_name(node: ast.Import | ast.ImportFrom, alias: ast.alias) -> str:
    """The dotted name of what `node` imports as `alias`."""
    return f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name


def prefixes(name: str) -> list[str]:
    """Give "a", "a.b" and "a.b.c" for "a.b.c"."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def dotted_name(node: ast.expr, modules: dict[str, str]) -> str:
    """The full name of what an expression such as `os.kill` reaches in a module, or ""."""
    if isinstance(node, ast.Name):
        return modules.get(node.id, "")
    if isinstance(node, ast.Attribute) and (owner := dotted_name(node.value, modules)):
        return f"{owner}.{node.attr}"
    return ""


def writes_a_file(call: ast.Call, modules: dict[str, str]) -> bool:
    """Whether `call` is of the built-in `open` or looks like one of a `Path` that writes.

    `Path.replace` takes one argument where `str.replace` takes two and `datetime.replace` none
    without a keyword.  `Path.open` is told by its mode.
    """
    method = call.func
    if isinstance(method, ast.Name):
        return method.id == "open" and "open" not in modules
    if not isinstance(method, ast.Attribute):
        return False
    if dotted_name(method.value, modules).startswith(("backy.system", "os")):
        return False  # the door itself, and what the list in pyproject.toml has
    if method.attr == "replace":
        return len(call.args) == 1 and not call.keywords
    if method.attr == "open":
        return any(is_writing_mode(a) for a in (*call.args, *(k.value for k in call.keywords)))
    return method.attr in WRITING_METHODS


def is_writing_mode(argument: ast.expr) -> bool:
    """Whether `argument` is a literal such as "wb" or "r+"."""
    value = argument.value if isinstance(argument, ast.Constant) else None
    return (
        isinstance(value, str)
        and 0 < len(value) <= 3
        and set(value) <= set("rwxabt+")
        and bool(set(value) & set("wxa+"))
    )


if __name__ == "__main__":
    sys.exit(main())
