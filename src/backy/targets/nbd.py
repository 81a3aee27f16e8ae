"""Targets "nbd", "nbds", "nbd+unix" and "nbds+unix": an export of any NBD server."""

from contextlib import AbstractContextManager, nullcontext

from backy.errors import ConfigError, UsageError
from backy.nbd.uri import Address, parse_uri
from backy.targets.remote import RemoteTarget


class NbdTarget(RemoteTarget):
    """A Target; see there for the contract. The bytes beyond the disk stay what they are."""

    def __init__(self, place: str) -> None:
        """`place` is the whole URI."""
        super().__init__(place)
        try:
            self._address = parse_uri(place)
        except ConfigError as error:
            raise UsageError(error.message, error.hint) from error
        self.identity = self._address.place

    def _served(self) -> AbstractContextManager[Address]:
        """See RemoteTarget."""
        return nullcontext(self._address)
