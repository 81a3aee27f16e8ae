"""Restore to a domain of libvirt: its disks in place, or a new one from the XML that was saved."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import Element

from backy.clients.libvirt_xml import new_domain
from backy.clients.virsh import Virsh, attribute, is_lasting
from backy.errors import TargetError, UsageError, translated
from backy.image.progress import Watcher
from backy.model.revision import Revision, disk_of
from backy.operations.restore import RestoredDisk, RestoreOptions, RestoreResult
from backy.operations.site import Site
from backy.repository.repository import Repository
from backy.system import folders
from backy.targets import IMAGES, name_in_folder, open_target
from backy.targets.remote import as_target_error
from backy.units import MiB

# A name, where the files of a new domain go, and a libvirtd of this machine.
_WORD = re.compile(
    r"libvirt:(\w[\w .+@-]*)(\?((folder|pool)=([^&]+)&?)?(uri=(qemu[+unix]*:///.*))?)?"
)
_FORM = "Write libvirt:DOMAIN, libvirt:NEW?folder=PATH or libvirt:NEW?pool=NAME."
_HINT = "Is libvirtd running, and is it there? Try: virsh list --all; virsh pool-list --all"
_ONE_BY_ONE = "Restore each disk by itself: --disk NAME=TARGET; see docs/targets.md."
_AGAIN = "The disks are complete. When that is mended, run it again with --overwrite."


def restore_domain(
    run: Callable[..., RestoreResult],
    site: Site,
    job: str,
    target: str,
    options: RestoreOptions,
    *,
    watcher: Watcher,
    on_disk: Callable[[RestoredDisk], None],
) -> RestoreResult:
    """As `run`, which is `restore_job` or `restore_recorded`, to the domain that `target` names.

    Before a hook runs or anything is written, this raises UsageError if `target` is no such word,
    and TargetError if the domain cannot take the disks now, or a new one cannot be made. A new
    domain is defined when its last disk is complete. Nothing starts it.
    """
    found = _WORD.fullmatch(target)
    if not found:
        raise UsageError(f"{target!a:.200} names no domain of this machine", _FORM)
    name, kind, place, uri = found.group(1, 4, 5, 7)
    virsh, repository = Virsh(uri or "qemu:///system", name, 60), site.repository(job)
    revision = repository.find(options.spec)
    wanted = [disk_of(revision, options.disk)] if options.disk else list(revision.disks)
    options = replace(options, spec=revision.id, typed=target)
    if not kind:
        words = _words_in_place(virsh, name, wanted, revision, watcher)
        return run(site, job, words, options, watcher=watcher, on_disk=on_disk)
    words, xml, notes, nvram = _planned(
        repository, revision, wanted, _folder(virsh, name, kind, place) / name
    )
    for path in [] if options.overwrite or options.over_source else nvram:
        open_target(f"file:{path}").refuse_used()
    result = run(site, job, words, options, watcher=watcher, on_disk=on_disk)
    if options.dry_run:
        return result
    with as_target_error(_AGAIN), translated(TargetError, f"writing the NVRAM of {name}", _AGAIN):
        for path, content in nvram.items():
            folders.write_file(path, content)
        virsh.define(xml)
    for note in notes:
        watcher.warn(f"domain {name}: {note}")
    watcher.note(f"domain {name} is defined, and off")
    return replace(result, files=list(nvram))


@as_target_error(_HINT)
def _words_in_place(
    virsh: Virsh, name: str, wanted: list[str], revision: Revision, watcher: Watcher
) -> dict[str, str]:
    """Where a domain has its disks, as targets. Raises TargetError if it must not be written to."""
    domain, title = virsh.domain(), f"domain {name}"
    if domain.is_active:
        raise TargetError(f"{title} runs, or is paused", f"Shut it down: virsh shutdown {name}")
    if "Managed save:   yes" in virsh.call("dominfo", domain.uuid):
        why = f"{title} has a saved state, and would go on from there with other disks"
        raise TargetError(why, f"Drop it: virsh managedsave-remove {name}")
    disks = {each: disk for each, disk in domain.disks().items() if is_lasting(disk)}
    if missing := [each for each in wanted if each not in disks]:
        hint = f"It has: {', '.join(disks) or 'none'}. Add a disk, or choose one with --disk NAME."
        raise TargetError(f"{title} has no disk {', '.join(missing)}", hint)
    for each in disks.keys() - revision.disks.keys():
        watcher.warn(f"{title}: disk {each} stays as it is, because the backup has none")
    return {each: _word_in_place(each, disks[each]) for each in wanted}


def _word_in_place(name: str, disk: Element) -> str:
    kind = attribute(disk, "driver", "type") or "raw"
    if (file := attribute(disk, "source", "file")) and kind in {*IMAGES, "raw"}:
        return f"{kind.replace('raw', 'file')}:{file}"
    if (device := attribute(disk, "source", "dev")) and kind == "raw":
        return f"device:{device}"
    if attribute(disk, "source", "protocol") == "rbd" and kind == "raw":
        user, conf = attribute(disk, ".//auth", "username"), attribute(disk, ".//config", "file")
        options = (f"user={user}&" if user else "") + (f"conf={conf}" if conf else "")
        return f"rbd:{attribute(disk, 'source', 'name')}?{options}".rstrip("?&")
    raise TargetError(f"disk {name} is {kind} in a storage that is no target", _ONE_BY_ONE)


@as_target_error(_HINT)
def _folder(virsh: Virsh, name: str, kind: str, place: str) -> Path:
    """The folder for the files of a new domain: the one that is named, or that of a pool."""
    if name in virsh.call("list", "--all", "--name").splitlines():
        hint = f"Take another name; libvirt:{name} alone restores its disks in place."
        raise TargetError(f"there is a domain {name} already", hint)
    if kind == "folder":
        return Path(place).absolute()
    pool = virsh.xml("pool-dumpxml", place)
    if pool.get("type") not in {"dir", "fs", "netfs"}:
        raise TargetError(f"pool {place} is of type {pool.get('type')}, no folder", _ONE_BY_ONE)
    return Path(pool.findtext("target/path", ""))


@as_target_error(_ONE_BY_ONE)
def _planned(
    repository: Repository, revision: Revision, wanted: list[str], place: Path
) -> tuple[dict[str, str], Element, list[str], dict[Path, bytes]]:
    """The targets of a new domain, its XML, notes, and its NVRAM. Its files begin with `place`."""
    saved, title = repository.folder_of(revision), f"{repository.name}: reading domain.xml"
    with repository.reading(revision), translated(TargetError, title, _ONE_BY_ONE):
        xml, old = folders.read_file(saved / "domain.xml", MiB), saved / "nvram.fd"
        new = place.with_name(f"{place.name}-nvram.fd")
        nvram = {new: folders.read_file(old, MiB)} if old.exists() else {}
    disks, words = {}, {}
    for each in wanted:
        file = name_in_folder(each, revision.disks[each].image_format)
        path = place.with_name(f"{place.name}-{file}")
        kind = path.suffix[1:].replace("img", "raw")
        disks[each], words[each] = (path, kind), f"{kind.replace('raw', 'file')}:{path}"
    return words, *new_domain(xml, place.name, disks, nvram=next(iter(nvram), None)), nvram
