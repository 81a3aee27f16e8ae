"""backy init: mark the base directory."""

from __future__ import annotations

from backy.cli.app import AsJson, Context, app
from backy.cli.output import answer
from backy.model.answers import InitAnswer
from backy.repository.base import MARKER, mark_base


@app.command(epilog="Example: backy init")
def init(context: Context, as_json: AsJson = False) -> None:
    """Make the base directory and the file that marks it as mounted.

    The first backup does this as well, unless base-dir-must-be-mounted is set.
    """
    base = context.obj.named_base
    mark_base(base)
    answer(as_json, InitAnswer(base=str(base), marker=MARKER), f"{base}: ready for backups")
