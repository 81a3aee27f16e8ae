"""Target "rbd": an image of a Ceph cluster, which is made if it is missing."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from urllib.parse import parse_qsl

from backy.clients.rbd import Rbd
from backy.errors import TargetError, UsageError
from backy.model.extent import Kind
from backy.nbd.remote_image import NbdDraft
from backy.nbd.uri import Address
from backy.targets.remote import RemoteTarget, as_target_error, served_by_qemu

_PLACE = re.compile(r"([^/@?]+)/(?:([^/@?]+)/)?([^/@?]+)(?:@([^/@?]+))?(?:\?(.*))?")
_CREATION = {"data-pool": "data-pool", "features": "image-feature", "object-size": "object-size"}
_ACCESS = {"user", "conf"}
_SECTOR = 512  # bytes; QEMU sees whole ones
_TIMEOUT_SECONDS = 60
_FORM = "Write rbd:POOL/IMAGE or rbd:POOL/NAMESPACE/IMAGE; see docs/targets.md."
_HINT = "Do the monitors answer, and may this user do it? See docs/targets.md."


class RbdTarget(RemoteTarget):
    """A Target; see there for the contract. The bytes beyond the disk stay what they are.

    A new image is called .IMAGE.partial until it is complete. After a failure it stays, and the
    next restore to this image continues.
    """

    def __init__(self, place: str) -> None:
        """`place` names the image, with options after a question mark."""
        super().__init__(f"rbd:{place}")
        found = _PLACE.fullmatch(place)
        given = dict(parse_qsl(found[5] or "", keep_blank_values=True)) if found else {}
        if not found or (found[2] and found[4]) or not place.isprintable():
            raise UsageError(f"{place!a:.200} names no image", _FORM)
        if unknown := given.keys() - _CREATION.keys() - _ACCESS:
            known = ", ".join((*_CREATION, *sorted(_ACCESS)))
            raise UsageError(f"rbd has no option {', '.join(sorted(unknown))}", f"Use: {known}.")
        above = [part for part in (found[1], found[2] or found[4]) if part]
        self._short = found[3]
        self._image = "/".join((*above, self._short))
        self.identity = f"rbd:{self._image}"
        self._partial = "/".join((*above, f".{self._short}.partial"))
        self._options = {word: given[key] for key, word in _CREATION.items() if key in given}
        self._rbd = Rbd(given.get("conf", ""), given.get("user", ""), _TIMEOUT_SECONDS)

    @as_target_error(_HINT)
    def refuse_used(self) -> None:
        """See Target. The cluster lists what an image holds."""
        if not self._rbd.exists(self._image):
            return
        extents = self._rbd.extents(self._image, None, self.capacity() or 0)
        if extents is None or any(extent.kind is Kind.DATA for extent in extents):
            hint = "Name a new image, or add --overwrite to replace its content."
            raise TargetError(f"{self._image} holds data", hint)

    def check(self, size: int) -> None:
        """See Target."""
        self._refuse_watched(self._current())
        super().check(size)

    @contextmanager
    def open(self, size: int, block_size: int) -> Iterator[NbdDraft]:
        """See Target. Whoever opened it since `check` is noticed now: we watch it, too."""
        with super().open(size, block_size) as draft:
            self._refuse_watched(self._current(), most=1)
            yield draft

    @as_target_error(_HINT)
    def _refuse_watched(self, image: str, *, most: int = 0) -> None:
        watchers = self._rbd.watchers(image) if self._rbd.exists(image) else []
        if len(watchers) > most:
            why = f"{image} is open: {', '.join(watchers)} watches it"
            raise TargetError(why, f"Stop the VM or program that uses it: rbd status {image}.")

    def _served(self) -> AbstractContextManager[Address]:
        """See RemoteTarget."""
        return served_by_qemu([self._rbd.node(self._current())], self._name, _HINT)

    @as_target_error(_HINT)
    def _exists(self) -> bool:
        """See RemoteTarget."""
        return self._rbd.exists(self._image)

    @as_target_error(_HINT)
    def _has_content(self) -> bool:
        """See RemoteTarget."""
        return self._rbd.exists(self._current())

    def _current(self) -> str:
        return self._image if not self._is_new and self._exists() else self._partial

    @as_target_error(_HINT)
    def _make(self, size: int) -> bool:
        """See RemoteTarget."""
        size += -size % _SECTOR
        if self._has_content():
            with self._connected() as connections:
                if connections.export.size == size:
                    return False
            self._rbd.remove(self._partial)
        self._rbd.create(self._partial, size, self._options)
        return True

    @as_target_error(_HINT)
    def _publish(self) -> None:
        """See RemoteTarget."""
        self._rbd.name_anew(self._partial, self._short)
