"""config and expire: what the configuration says, and what follows from it for the history."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer
from typer import Option

from backy.cli.app import AsJson, Context, Job, Site, app, open_repository
from backy.cli.output import answer, print_json, printable, table
from backy.errors import ConfigError

config = typer.Typer(
    help="Check and show the configuration.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(config, name="config")
OneJob = Annotated[str | None, Option(metavar="JOB", help="Only this job, with its defaults.")]
DryRun = Annotated[bool, Option("--dry-run", help="Only show what would go, and why.")]


@config.command(epilog="Example: backy config check")
def check(context: Context, as_json: AsJson = False) -> None:
    """Name everything that is wrong in the configuration, with file and line."""
    from backy.config.loader import ProblemsError

    site: Site = context.obj
    path = site.needed_path()
    try:
        loaded = site.loaded
        problems, count, files = loaded.problems, len(loaded.config.jobs), len(loaded.files)
    except ProblemsError as error:
        problems, count, files = error.problems, 0, 1
    records = [
        {"file": str(each.path), "line": each.line, "key": each.key, "message": str(each)}
        for each in problems
    ]
    fine = f"{path}: {count} jobs in {files} files, nothing is wrong"
    lines = [printable(str(each)) for each in problems] or fine
    answer(as_json, {"file": str(path), "jobs": count, "problems": records}, lines)
    if problems:
        raise ConfigError(
            f"{path}: {len(problems)} problems", "A running daemon keeps what it has."
        )


@config.command(epilog="Example: backy config show --job vm1")
def show(context: Context, job: OneJob = None) -> None:
    """Print the configuration as it is understood, includes and defaults filled in, as JSON."""
    site: Site = context.obj
    config = site.loaded.config
    if job is None:
        print_json(config.model_dump(mode="json"))
    elif job in config.jobs:
        print_json({job: config.jobs[job].model_dump(mode="json")})
    else:
        raise ConfigError(f"{site.path} has no valid job {job!r}", "backy config check")


@config.command(epilog="Example: backy config schema > backy.schema.json")
def schema() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    from backy.config.loader import schema as made

    print_json(made())


@app.command(epilog="Example: backy expire vm1 --dry-run")
def expire(context: Context, job: Job, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Remove what the schedule does not keep: to the trash, from where undo brings it back."""
    from backy.operations.expire import expire as run

    configured = context.obj.config_of(job)
    if not configured:
        raise ConfigError(f"{job}: it is not configured, so nothing of it expires", "backy jobs")
    repository = open_repository(context, job)
    minimum = configured.jobs[job].minimum
    now = datetime.now(UTC)
    found = run(repository, configured.intervals(job), now, minimum, is_dry=dry_run)
    records = [
        {"revision": each.revision.id, "drop": each.drop, "keep": each.keep}
        | {"removed": each.is_removed, "why": each.why}
        for each in found
    ]
    rows = (
        (each.revision.id, "remove" if each.is_removed else f"drop {','.join(each.drop)}", each.why)
        for each in found
    )
    record = {"event": "finished", "job": job, "dry_run": dry_run, "expired": records}
    answer(as_json, record, table(("revision", "would" if dry_run else "did", "why"), rows))
