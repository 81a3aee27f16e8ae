"""Write the completion for bash, zsh and fish: python -m tools.make_completion FOLDER.

FOLDER is laid out as /usr/share.  The scripts are typer's.  They ask the program itself what there
is, so they never have to be made again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PLACES = {
    "bash": "bash-completion/completions/backy",
    "zsh": "zsh/vendor-completions/_backy",
    "fish": "fish/vendor_completions.d/backy.fish",
}


def main() -> int:
    """Write all scripts; FOLDER is the only argument."""
    if len(sys.argv) != 2:
        print("usage: python -m tools.make_completion FOLDER", file=sys.stderr)
        return 2
    for shell, place in PLACES.items():
        path = Path(sys.argv[1], place)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(script(shell))
    return 0


def script(shell: str) -> str:
    """What the shell reads once, before it completes the program for the first time."""
    text = subprocess.run(
        [sys.executable, "-m", "backy"],
        env=os.environ | {"_BACKY_COMPLETE": f"source_{shell}"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    if shell == "zsh":
        # zsh calls a file of its function path as the function that it is named after.  Typer's
        # only defines one, so that the first Tab would do nothing.
        text = text.replace("compdef _backy_completion backy", '_backy_completion "$@"')
    return text.strip() + "\n"


if __name__ == "__main__":
    sys.exit(main())
