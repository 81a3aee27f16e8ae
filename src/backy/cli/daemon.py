"""backy daemon: run all configured jobs."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from backy.cli.app import Context, app
from backy.errors import ConfigError
from backy.operations.site import Site

LogJson = Annotated[bool, Option("--log-json", help="Log one JSON object a line instead of text.")]


@app.command(epilog="Example: backy daemon --log-json")
def daemon(context: Context, log_json: LogJson = False) -> None:
    """Run all configured jobs, until SIGTERM.

    SIGHUP makes it read the configuration again. It stays in the foreground, for systemd or
    another supervisor.
    """
    import asyncio

    from backy.daemon.daemon import Daemon
    from backy.daemon.log import open_log

    site: Site = context.obj
    if not site.globals.daemon:
        why = f"{site.path} says that there is no daemon"
        raise ConfigError(why, "Remove global.daemon, and stop what else starts the backups.")
    asyncio.run(Daemon(site.needed_path(), site.asked, open_log(as_json=log_json)).run())
