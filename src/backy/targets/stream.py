"""Target "stream": standard output, for a pipe to another program or machine."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from backy.errors import TargetError, UsageError, translated
from backy.system import files
from backy.units import MiB


class StreamTarget:
    """A Target; see there for the contract. Durable is what the reader makes of it."""

    is_sequential = True
    identity = "-"

    def __init__(self, place: str = "") -> None:
        """There is only one standard output, so it has no place."""
        if place:
            raise UsageError(f"a stream has no name {place!r}", "Write - for standard output.")

    def refuse(self, sources: Mapping[str, Path | str]) -> None:
        """Nothing can be lost."""

    def refuse_format(self, read_start: Callable[[], bytes]) -> None:
        """Nothing is there."""

    def refuse_used(self) -> None:
        """Nothing is replaced."""

    def check(self, size: int) -> None:
        """Any size will do."""

    def capacity(self) -> int | None:
        """None: nobody knows what the reader can take."""
        return None

    @contextmanager
    def open(self, size: int, block_size: int) -> Iterator["StreamDraft"]:
        """See Target."""
        yield StreamDraft(block_size)

    def read_back(self) -> None:
        """None: what was written is gone."""


class StreamDraft:
    """Standard output, as a Draft that must be written in ascending order."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size

    def write(self, offset: int, data: memoryview) -> None:
        """Append."""
        with translated(TargetError, f"writing to standard output at byte {offset}"):
            files.append_to_standard_output(data)

    def zero(self, offset: int, length: int) -> None:
        """Append zeroes."""
        zeroes = memoryview(bytes(min(length, MiB)))
        for start in range(0, length, MiB):
            self.write(offset + start, zeroes[: length - start])
