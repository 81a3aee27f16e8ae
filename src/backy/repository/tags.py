"""Add and drop tags of revisions."""

from collections.abc import Iterable
from dataclasses import replace

from backy.errors import BusyError
from backy.model.names import check_tag
from backy.model.revision import Revision
from backy.repository.repository import Repository

HOLD = "manual:boot:"  # the beginning of the tags of revisions that VMs run from


def retag(
    repository: Repository, revisions: Iterable[Revision], *, add: set[str], drop: set[str]
) -> list[Revision]:
    """Add and drop tags; return the revisions with their new tags.

    Raises ConfigError for an impossible tag, NotFoundError if a revision was removed, StoreError.
    """
    for tag in add | drop:
        check_tag(tag)

    def tagged(revision: Revision) -> Revision:
        return replace(revision, tags=tuple(sorted((set(revision.tags) | add) - drop)))

    return [repository.change(revision, tagged) for revision in revisions]


def refuse_held(repository: Repository, revisions: Iterable[Revision]) -> None:
    """Raises BusyError if a VM needs one of the revisions, which then must not be removed."""
    for revision in revisions:
        for tag in revision.tags:
            if tag.startswith(HOLD):
                why = f"{repository.name}: a VM runs from {revision.id}, as its tag {tag} says"
                drop = f"backy tag {repository.name} -r {revision.id} -{tag}"
                raise BusyError(why, f"Run its backy boot to the end. If it is gone: {drop}")
