"""Add and drop tags of revisions."""

from collections.abc import Iterable
from dataclasses import replace

from backy.model.names import check_tag
from backy.model.revision import Revision
from backy.repository.repository import Repository


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
