"""What targets have in common that are written through an NBD server."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path

from backy.clients.qemu_nbd import run_server
from backy.errors import BackyError, SourceError, TargetError
from backy.image.copy import is_zero
from backy.image.image import Image, read_bytes
from backy.model.extent import Kind, chop
from backy.nbd.remote_image import Connections, NbdDraft, NbdImage
from backy.nbd.uri import Address
from backy.nbd.wire import ALLOCATION, IS_READ_ONLY
from backy.targets.formats import LENGTH, format_of
from backy.units import MiB, format_size

_TIMEOUT_SECONDS = 120  # to connect, and for each request
_START_SECONDS = 60  # that a qemu-nbd has to open what it exports
_MOST_READ = 64  # pieces of 1 MiB


class _Connections(Connections):
    kind: type[BackyError] = TargetError
    hint = "Is the server running? What was written is not complete, so run it again."


class RemoteTarget:
    """The part of a Target that is the same for all servers. `name` is for messages."""

    is_sequential = False

    def __init__(self, name: str) -> None:
        self._name = name
        self.identity = ""  # also what a Source that reads the same has among its `paths`
        self._users = 0
        self._is_new = False  # while a draft is open that will get its name at the end

    def _served(self) -> AbstractContextManager[Address]:
        """The export of what is there now. Raises TargetError."""
        raise NotImplementedError

    def _exists(self) -> bool:
        """Whether it has its name already."""
        return True

    def _has_content(self) -> bool:
        """Whether there is something to serve, under its name or under a temporary one."""
        return True

    def _make(self, size: int) -> bool:
        """Make what is missing, under a temporary name; whether all of it reads as zeroes."""
        return False

    def _publish(self) -> None:
        """Give what was made its name, now that it is complete."""

    def refuse(self, sources: Mapping[str, Path | str]) -> None:
        """See Target."""
        for disk, source in sources.items():
            if source == self.identity and self._exists():
                why = f"{self._name} is the source of disk {disk}; a restore would overwrite it"
                raise TargetError(why, "If you want that, stop the VM and add --over-source.")

    def refuse_format(self, read_start: Callable[[], bytes]) -> None:
        """See Target."""
        if self._exists():
            with self._content() as image:
                held = format_of(bytes(read_bytes(image, 0, min(LENGTH, image.size))))
            if held and format_of(read_start()) != held:
                why = f"{self._name} holds a {held} image; the bytes of the disk would destroy it"
                raise TargetError(why, "Name another target, or erase its first 4 KiB.")

    def refuse_used(self) -> None:
        """See Target. It is not used if all is zero; only 64 MiB are read to find that out."""
        if self._exists():
            with self._content() as image:
                data = (each for each in image.extents() if each.kind is Kind.DATA)
                is_used = any(
                    number >= _MOST_READ or not is_zero(read_bytes(image, each.start, each.length))
                    for number, each in enumerate(chop(data, MiB))
                )
            if is_used:
                hint = "Name another target, or add --overwrite to replace its content."
                raise TargetError(f"{self._name} holds data, or its server cannot tell", hint)

    def check(self, size: int) -> None:
        """See Target."""
        if self._exists():
            with self._connected() as connections:
                has, flags = connections.export.size, connections.export.flags
            if flags & IS_READ_ONLY:
                raise TargetError(f"{self._name} can only be read", "Is its server started so?")
            if has < size:
                why = f"{self._name} has {has} bytes ({format_size(has)}); {size} are needed"
                raise TargetError(why, "Name a larger target.")

    def capacity(self) -> int | None:
        """See Target."""
        if not self._exists():
            return None
        with self._content() as image:
            return image.size

    @contextmanager
    def open(self, size: int, block_size: int) -> Iterator[NbdDraft]:
        """See Target. What is new has a temporary name until it is complete."""
        is_new = self._is_new = not self._exists()
        is_zero = self._make(size) if is_new else False
        try:
            with self._connected() as connections:
                draft = NbdDraft(connections, block_size, is_new=is_zero)
                yield draft
                draft.finish()
            if is_new:
                self._publish()
        finally:
            self._is_new = False

    def read_back(self) -> AbstractContextManager[Image] | None:
        """See Target. May be used while a draft is open."""
        return self._content() if self._has_content() else None

    @contextmanager
    def _content(self) -> Iterator[NbdImage]:
        with self._connected() as connections:
            yield NbdImage(connections)

    @contextmanager
    def _connected(self) -> Iterator[Connections]:
        """Connections that all share who use them at once: a server may accept only one."""
        if not self._users:
            with ExitStack() as stack:
                address = stack.enter_context(self._served())
                shared = _Connections(address, (ALLOCATION,), _TIMEOUT_SECONDS)
                self._connections = stack.enter_context(closing(shared))
                self._closing = stack.pop_all()
        self._users += 1
        try:
            yield self._connections
        finally:
            self._users -= 1
            if not self._users:
                self._closing.close()


@contextmanager
def served_by_qemu(arguments: Sequence[str], name: str, hint: str) -> Iterator[Address]:
    """The export of a qemu-nbd of our own, which may write. Raises TargetError."""
    with ExitStack() as stack:
        with as_target_error(hint):
            words = ["--discard=unmap", *arguments]
            server = run_server(words, name, timeout_seconds=_START_SECONDS)
            address = stack.enter_context(server)
        yield address


@contextmanager
def as_target_error(hint: str) -> Iterator[None]:
    """Turn what a client of a storage raises into TargetError; also as a decorator."""
    try:
        yield
    except SourceError as error:
        raise TargetError(error.message, hint) from error
