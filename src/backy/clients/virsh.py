"""libvirt, through its program virsh; see docs/decisions/0014-libvirt-by-virsh.md."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from xml.etree.ElementTree import Element, ParseError, fromstring, tostring

from backy.clients.program import output_of
from backy.errors import ConfigError, SourceError, translated
from backy.model.names import check_disk_name
from backy.system import process, signals
from backy.system.process import Outcome, Program, guarding
from backy.units import MiB

_LONGEST_OUTPUT = MiB  # as much as a file of a revision
_LONGEST_REASON = 300  # characters of what virsh says
_VERSION = re.compile(r"hypervisor: QEMU ([0-9]{1,4})\.([0-9]{1,4})\.([0-9]{1,4})")
_SIZE = re.compile("[0-9]{1,19}")  # bytes
_COLUMNS = 4  # name, capacity, allocated, physical
_COUNT = re.compile("[1-9]")  # of file systems that were frozen, or thawed
_HINT = "Is it defined on this server, and is libvirtd running? Try: virsh --connect URI list --all"
_THAW_HINT = "Thaw it now: virsh domfsthaw DOMAIN"


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain as it was when it was asked for; `xml` is the live one while it runs."""

    uuid: str
    xml: Element

    @property
    def is_active(self) -> bool:
        """Whether it runs, or is paused."""
        return "id" in self.xml.attrib

    def disks(self) -> dict[str, Element]:
        """Its disks by name, such as "vda". Raises SourceError if a name can be no disk's."""
        elements = self.xml.iterfind("devices/disk")
        disks = {attribute(element, "target", "dev"): element for element in elements}
        try:
            return {check_disk_name(name): disk for name, disk in disks.items()}
        except ConfigError as error:
            raise SourceError(f"domain {self.uuid:.50}: {error.message:.200}", _HINT) from error


class Virsh:
    """Calls about one domain, by its name or UUID. All methods may raise SourceError."""

    def __init__(self, uri: str, domain: str, timeout_seconds: float) -> None:
        self._uri = uri
        self._domain = domain
        self._timeout = timeout_seconds

    def call(self, *arguments: str, stdin: bytes = b"", timeout_seconds: float = 0) -> str:
        """Run a command of virsh and give its output; 0 stands for the time limit of all calls."""
        seconds = timeout_seconds or self._timeout
        command = self._program(*arguments, timeout_seconds=seconds).command
        title, limit = f"domain {self._domain}: {arguments[0]}", _LONGEST_OUTPUT
        output = output_of(command, title, timeout_seconds=seconds, stdin=stdin, limit=limit)
        try:
            return output.decode()
        except UnicodeDecodeError as error:
            raise SourceError(f"{title}: virsh printed something else than UTF-8") from error

    def xml(self, *arguments: str) -> Element:
        """Run a command that prints XML, and parse that."""
        text = self.call(*arguments)
        try:
            # libvirtd runs as root, and writes XML without entities.
            return fromstring(text)  # noqa: S314 - see above
        except ParseError as error:
            why = f"domain {self._domain}: {arguments[0]}: virsh printed no XML: {error}"
            raise SourceError(why) from error

    def define(self, domain: Element) -> None:
        """Define a domain, or define it anew."""
        self.call("define", "/dev/stdin", stdin=tostring(domain))

    def domain(self) -> Domain:
        """The domain as it is now."""
        try:
            root = self.xml("dumpxml", self._domain)
        except SourceError as error:
            raise SourceError(error.message, _HINT) from error
        uuid = root.findtext("uuid", "")
        if self._domain not in {uuid, root.findtext("name")}:
            # virsh takes a number for the id of a running domain.
            raise SourceError(f"there is no domain called {self._domain}", _HINT)
        return Domain(uuid, root)

    def qemu_version(self) -> tuple[int, int, int]:
        """The version of QEMU that libvirt starts; (0, 0, 0) where it does not say."""
        found = _VERSION.search(self.call("version"))
        return (int(found[1]), int(found[2]), int(found[3])) if found else (0, 0, 0)

    def allocated(self, domain: Domain) -> dict[str, int]:
        """The bytes that each disk takes in its storage, by name."""
        rows = map(str.split, self.call("domblkinfo", domain.uuid, "--all").splitlines())
        sizes = {row[0]: row[2] for row in rows if len(row) == _COLUMNS}
        return {name: int(size) for name, size in sizes.items() if _SIZE.fullmatch(size)}

    @contextmanager
    def frozen(self, domain: Domain, timeout_seconds: float) -> Iterator[list[str]]:
        """Freeze the guest's file systems during the body, which runs even where that fails.

        Gives the failures: why the guest was not frozen all the time; complete after the body. The
        guest is thawed whatever happens, also if we are killed. Freezing takes at most half of
        `timeout_seconds`. Raises SourceError where the guest may still be frozen at the end, and
        where the guard that thaws after a kill cannot be started; nothing is frozen then.
        """
        freeze = self._program("domfsfreeze", domain.uuid, timeout_seconds=timeout_seconds / 2)
        thaw = self._program("domfsthaw", domain.uuid, timeout_seconds=self._timeout)
        with ExitStack() as stack:
            what = f"domain {self._domain}: starting the guard that thaws it"
            with translated(SourceError, what):
                guard = stack.enter_context(guarding([thaw]))
            frozen, failures = Outcome(None, ""), list[str]()
            try:
                frozen = process.run(freeze, guard)
                yield failures
            finally:
                # A second signal must not come between.
                with signals.shielded():
                    thawed = process.run(thaw, guard)
                    if thawed.code == 0 or frozen.code:
                        guard.disarm()
        if not frozen.code and thawed.code != 0:
            why = f"the guest of domain {self._domain} may still be frozen"
            raise SourceError(f"{why}: {_reason(thawed)}", _THAW_HINT)
        # Both commands print the number of file systems.
        for outcome in (frozen, thawed):
            if outcome.code or not _COUNT.search(outcome.output):
                failures.append(_reason(outcome) or "it took too long")

    def _program(self, *arguments: str, timeout_seconds: float) -> Program:
        command = ("virsh", "--connect", self._uri, *arguments)
        return Program(command, {"LC_ALL": "C"}, b"", timeout_seconds)


def attribute(element: Element, path: str, name: str) -> str:
    """An attribute of the element at `path` below another; "" where there is none."""
    found = element.find(path)
    return "" if found is None else found.get(name, "")


def is_lasting(disk: Element) -> bool:
    """Whether a guest can write to a disk, and what it wrote survives a shutdown."""
    fixed = {"readonly", "transient"} & {child.tag for child in disk}
    return disk.get("device", "disk") in {"disk", "lun"} and not fixed


def _reason(outcome: Outcome) -> str:
    return outcome.output.strip()[-_LONGEST_REASON:].replace("\n", " ")
