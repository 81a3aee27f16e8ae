"""A source as it is typed after --source: a path, or a kind and a place, such as rbd:pool/image."""

from collections.abc import Iterator, Sequence
from itertools import count, product
from pathlib import Path
from string import ascii_lowercase

from backy.errors import UsageError

_FORMATS = ("luks", "qcow", "qcow2", "qed", "raw", "vdi", "vhdx", "vmdk", "vpc")
_KINDS = {
    **{kind: kind for kind in ("exec", "file", "image", "libvirt", "nbd", "qemu", "rbd")},
    **dict.fromkeys(("nbds", "nbd+unix", "nbds+unix"), "nbd"),
    **dict.fromkeys(_FORMATS, "image"),
}
_RBD_NAMES = {2: ("pool", "image"), 3: ("pool", "namespace", "image")}


def typed_source(typed: Sequence[tuple[str, str]]) -> dict[str, object]:
    """The settings of a source of which for each disk its name, or "", and its place were typed.

    Disks without a name become vda to vdz, vdaa and so on. Raises UsageError where the places do
    not fit together; whether they exist, and are written right, is for the source to say.
    """
    words = {_split(place)[0] for _, place in typed}
    kinds = sorted({_KINDS[word] for word in words})
    if len(kinds) > 1:
        hint = "Back up the disks as two jobs, or give all of them in one way."
        raise UsageError(f"a source is of one type, not of {' and '.join(kinds)}", hint)
    [kind] = kinds
    if kind in {"exec", "libvirt", "qemu"}:
        if len(typed) > 1 or typed[0][0]:
            hint = "Give it once, and without DISK=."
            raise UsageError(f"a source of type {kind} has all disks of a VM", hint)
        return {"type": kind, **_whole(kind, _split(typed[0][1])[1])}
    disks: dict[str, object] = {}
    for (name, place), default in zip(typed, _default_names(), strict=False):
        if (disk := name or default) in disks:
            hint = "Name them: --source vda=… --source vdb=…"
            raise UsageError(f"two sources for disk {disk}", hint)
        disks[disk] = _disk(place)
    return {"type": kind, "disks": disks}


def _split(place: str) -> tuple[str, str]:
    """What stands before a colon, if that is a kind of source, and the rest."""
    word, colon, rest = place.partition(":")
    return (word, rest) if colon and word in _KINDS else ("file", place)


def _whole(kind: str, rest: str) -> dict[str, object]:
    if kind == "libvirt":
        return {"domain": rest}
    path = _absolute(rest)
    return {"command": [path]} if kind == "exec" else {"qmp": path}


def _disk(place: str) -> object:
    word, rest = _split(place)
    match _KINDS[word]:
        case "nbd":
            return place
        case "rbd":  # as a mapping, because a name may have spaces
            names = rest.split("/")
            keys = _RBD_NAMES.get(len(names))
            return dict(zip(keys, names, strict=True)) if keys else rest
        case _:
            path = _absolute(rest)
            return {"path": path, "format": word} if word in _FORMATS else path


def _absolute(path: str) -> str:
    return str(Path(path).absolute()) if path else ""


def _default_names() -> Iterator[str]:
    for length in count(1):
        for letters in product(ascii_lowercase, repeat=length):
            yield "vd" + "".join(letters)
