"""What every Origin promises.  An origin joins with a class of its own in a test module:

class TestMyOrigin(OriginSuite):
    @contextmanager
    def open(self, made: Made, disks: Mapping[str, bytes]) -> Iterator[Origin]:
        yield MyOrigin(...)  # which has these disks

    @contextmanager
    def unreachable(self, made: Made) -> Iterator[Origin]:
        yield MyOrigin(...)  # which cannot be asked
"""

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from backy.model.revision import Revision
from backy.operations.heal import healing
from backy.operations.origin import Origin, failures
from backy.operations.verify import verify
from tests.lab.repositories import BLOCK, Made
from tests.memory_source import sample

SHORT = 12_345
DISKS = {"vda": sample(3 * BLOCK + SHORT), "vdb": sample(2 * BLOCK, seed=1)}


class OriginSuite:
    """One kind of origin, for a repository with one revision of DISKS."""

    @abstractmethod
    def open(self, made: Made, disks: Mapping[str, bytes]) -> AbstractContextManager[Origin]:
        """One that has these disks."""

    @abstractmethod
    def unreachable(self, made: Made) -> AbstractContextManager[Origin]:
        """One that cannot be asked."""

    @pytest.fixture
    def made(self, tmp_path: Path) -> Made:
        return Made(tmp_path / "base")

    @pytest.fixture
    def revision(self, made: Made) -> Revision:
        return made.backup(**DISKS)

    def read(
        self, made: Made, origin: Origin, revision: Revision, disk: str, number: int
    ) -> bytes | None:
        """A block, by the hash that it has in the repository."""
        return origin.read(revision, disk, number, made.lines(revision, disk)[number])

    def test_has_a_name_for_the_middle_of_a_sentence(self, made: Made) -> None:
        with self.open(made, DISKS) as origin:
            assert origin.name
            assert not origin.name[0].isupper()

    def test_gives_each_block_of_each_disk_the_short_last_one_too(
        self, made: Made, revision: Revision
    ) -> None:
        with self.open(made, DISKS) as origin:
            for name, content in DISKS.items():
                blocks = [content[start : start + BLOCK] for start in range(0, len(content), BLOCK)]
                found = [self.read(made, origin, revision, name, n) for n in range(len(blocks))]
                assert found == blocks
            assert origin.failure == ""
            origin.close()

    @pytest.mark.parametrize(
        "other",
        [
            pytest.param({"vdb": DISKS["vdb"]}, id="without-the-disk"),
            pytest.param({"vda": DISKS["vda"][:-1]}, id="shorter-by-a-byte"),
            pytest.param({"vda": DISKS["vda"][:BLOCK]}, id="shorter-by-blocks"),
        ],
    )
    def test_gives_none_where_it_has_nothing_and_that_is_no_failure(
        self, made: Made, revision: Revision, other: Mapping[str, bytes]
    ) -> None:
        with self.open(made, other) as origin:
            assert self.read(made, origin, revision, "vda", 3) is None
            assert origin.failure == ""
            origin.close()

    def test_can_be_asked_again_after_it_was_closed(self, made: Made, revision: Revision) -> None:
        with self.open(made, DISKS) as origin:
            origin.close()
            for _ in range(2):
                assert self.read(made, origin, revision, "vdb", 0) == DISKS["vdb"][:BLOCK]
                origin.close()

    def test_says_why_it_could_not_be_asked_and_raises_nothing(
        self, made: Made, revision: Revision
    ) -> None:
        with self.unreachable(made) as origin:
            assert failures([origin]) == []
            for number in range(2):
                assert self.read(made, origin, revision, "vda", number) is None
            assert origin.failure
            origin.close()
            [sentence] = failures([origin])
            assert sentence.lower() == f"{origin.name} could not be asked: {origin.failure}".lower()

    def test_a_damaged_block_comes_back_from_it(self, made: Made, revision: Revision) -> None:
        made.chunk(revision, 3).write_bytes(b"damaged")
        with self.open(made, DISKS) as origin:
            [damage] = verify(made.repository, [revision], origins=[origin])
            assert damage.healed == origin.name
        assert made.intact()

    def test_is_closed_by_the_healer(self, made: Made, revision: Revision) -> None:
        with self.open(made, DISKS) as origin:
            with healing(made.repository, "verify", [origin]):
                self.read(made, origin, revision, "vda", 0)
            self.assert_closed(made)

    def assert_closed(self, made: Made) -> None:
        """Nothing is open or held: what an origin adds to this is up to it."""
        with made.repository.exclusive("backup"):
            pass
