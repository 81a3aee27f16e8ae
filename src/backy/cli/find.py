"""backy find: where a plain image or an index is."""

from __future__ import annotations

from backy.cli.app import AsJson, Context, Job, OneDisk, Spec, app
from backy.cli.output import answer
from backy.errors import NotFoundError
from backy.model.answers import FindAnswer
from backy.model.revision import disk_of


@app.command(epilog='Example: cp --sparse=always "$(backy find vm1 -r latest)" disk.img')
def find(
    context: Context, job: Job, spec: Spec = "latest", disk: OneDisk = None, as_json: AsJson = False
) -> None:
    """Print the path of a disk's image or index, for scripts.

    The store images has plain images, the store chunks has indexes.
    """
    repository = context.obj.repository(job)
    revision = repository.find(spec)
    name = disk_of(revision, disk)
    place = repository.store.plain_path(revision, name)
    path = place.path.absolute()
    if not place.exists():
        raise NotFoundError(f"{job}: {path} is missing", f"Run backy verify {job}.")
    record = FindAnswer(
        job=job, revision=revision.id, disk=name, store=repository.settings.store, path=str(path)
    )
    answer(as_json, record, str(path))
