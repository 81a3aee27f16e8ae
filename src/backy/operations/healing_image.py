"""A stored disk as an Image that repairs damaged blocks while it is read."""

from backy.errors import DamagedError, StoreError
from backy.operations.heal import BadBlock, Healer, StoredDisk


class HealingImage:
    """An Image of a stored disk; see Image for the contract.

    A damaged block is repaired in the repository, too. A block of which no good copy is found reads
    as zeroes with `keep_going`. `healed` and `lost` are the ranges of such blocks that were read,
    as (start, length) in bytes.
    """

    def __init__(self, stored: StoredDisk, healer: Healer, *, keep_going: bool) -> None:
        self.size = stored.image.size
        self.extents = stored.image.extents
        self.lost: set[tuple[int, int]] = set()
        self.healed: set[tuple[int, int]] = set()
        self._stored = stored
        self._healer = healer
        self._keep_going = keep_going

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """See Image. Raises DamagedError if a block is lost, unless `keep_going` is set."""
        if offset < 0 or offset + len(buffer) > self.size:
            raise StoreError(f"there is no byte {offset + len(buffer) - 1} in {self.size} bytes")
        error = self._stored.damage(offset, buffer)
        done = 0
        while error and done < len(buffer):
            number, within = divmod(offset + done, self._stored.image.block_size)
            part = self._block(number, error)[within : within + len(buffer) - done]
            buffer[done : done + len(part)] = part
            done += len(part)

    def _block(self, number: int, error: StoreError) -> bytes:
        block = self._stored.block(number)
        if block is not None:
            return block
        block, _ = self._healer.recover(BadBlock(self._stored, number, error.message))
        if block is None and not self._keep_going:
            raise DamagedError(error.message, error.hint) from error
        index = self._stored.image.index
        length = index.length_of(number)
        (self.lost if block is None else self.healed).add((number * index.block_size, length))
        return bytes(length) if block is None else block
