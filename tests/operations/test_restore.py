"""The verb restore: which disks go where, between which hooks, and what its caller is told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backy.errors import (
    DamagedError,
    HookError,
    NotFoundError,
    TargetError,
    UsageError,
)
from backy.image.progress import Watcher
from backy.model.revision import Revision
from backy.operations.differential import Differential, verify_target
from backy.operations.restore import RestoredDisk, RestoreOptions, restore_job
from backy.operations.site import Site
from backy.units import MiB
from tests.lab.repositories import BLOCK, Made, names
from tests.memory_source import sample

VDA, VDB = sample(3 * BLOCK + 100), sample(2 * BLOCK, seed=1)
CONTENT = {"vda": VDA, "vdb": VDB}


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "base")


@pytest.fixture
def revision(made: Made) -> Revision:
    return made.backup(**CONTENT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


@pytest.fixture
def site(made: Made) -> Site:
    """One without a configuration."""
    return Site(made.base)


Configure = Callable[..., Site]


@pytest.fixture
def configured(made: Made, tmp_path: Path) -> Configure:
    """Makes a site whose configuration has the job, with this source and these hooks."""

    def configure(source: dict[str, Any] | None = None, **hooks: str) -> Site:
        programs = {
            name.replace("_", "-"): {"command": ["/bin/sh", "-c", script, str(tmp_path)]}
            for name, script in hooks.items()
        }
        for name, program in programs.items():
            program["required"] = name.startswith("before")  # type: ignore[assignment]
        job = {
            "schedule": "default",
            "source": source or {"type": "file", "disks": {"vda": "/nowhere/vda.img"}},
            "hooks": programs,
        }
        document = {
            "global": {"base-dir": str(made.base)},
            "schedules": {"default": {"daily": {"interval": "1d", "keep": 9}}},
            "jobs": {"vm1": job},
        }
        (tmp_path / "backy.yaml").write_text(json.dumps(document))
        return Site(path=tmp_path / "backy.yaml")

    return configure


class Listener(Watcher):
    """Hears of a restore."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self.warnings: list[str] = []
        self.notes: list[str] = []
        self.disks: list[RestoredDisk] = []

    def begin(self, total: int) -> None:
        self.total += total

    def advance(self, length: int) -> None:
        self.done += length

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_folder_gets_every_disk_and_what_was_saved_beside_them(
    site: Site, made: Made, revision: Revision, folder: Path
) -> None:
    (made.repository.folder_of(revision).path / "vm.xml").write_bytes(b"<domain/>")
    heard = Listener()
    result = restore_job(site, "vm1", str(folder), watcher=heard, on_disk=heard.disks.append)
    assert names(folder) == ["vda.img", "vdb.img", "vm.xml"]
    assert {name: (folder / f"{name}.img").read_bytes() for name in CONTENT} == CONTENT
    assert result.revision.id == revision.id
    assert result.files == [folder / "vm.xml"]
    assert (result.lost, list(result.unasked)) == (0, [])
    assert [(each.disk, each.target, each.size) for each in result.disks] == [
        ("vda", f"{folder}/vda.img", len(VDA)),
        ("vdb", f"{folder}/vdb.img", len(VDB)),
    ]
    assert all(0 < each.read <= each.size and each.seconds >= 0 for each in result.disks)
    assert heard.disks == result.disks
    assert heard.total == heard.done == len(VDA) + len(VDB)


@pytest.mark.usefixtures("revision")
def test_each_disk_can_have_a_target_of_its_own(site: Site, tmp_path: Path) -> None:
    targets = {"vdb": str(tmp_path / "b.img"), "vda": str(tmp_path / "a.img")}
    result = restore_job(site, "vm1", targets)
    assert [each.disk for each in result.disks] == ["vdb", "vda"]
    assert (tmp_path / "a.img").read_bytes() == VDA
    assert (tmp_path / "b.img").read_bytes() == VDB


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("{}/x.img", "{}/x.img", id="file"),
        pytest.param("{}/x.img", "{}/./x.img", id="longer"),
        pytest.param("file:{}/x.img", "{}/folder/../x.img", id="kind"),
        pytest.param("{}/folder/x.img", "{}/link/x.img", id="link"),
        pytest.param("qcow2:{}/x", "vmdk:{}/folder/../x", id="images"),
        pytest.param("luks:{}/x?key-file=a", "luks:{}/x?key-file=b", id="keys"),
        pytest.param("nbd://localhost/x", "nbd://localhost:10809/x", id="nbd"),
        pytest.param("rbd:rbd/a/x", "rbd:rbd/x@a?user=me", id="rbd"),
        pytest.param("-", "-", id="stream"),
    ],
)
@pytest.mark.usefixtures("revision")
def test_two_disks_do_not_go_to_one_target(
    site: Site, tmp_path: Path, one: str, other: str
) -> None:
    """Also where it has two names. The second disk would replace the first, which seems done."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    before = names(tmp_path)
    targets = zip(CONTENT, (one.format(tmp_path), other.format(tmp_path)), strict=True)
    with pytest.raises(UsageError, match="two disks cannot go to one target"):
        restore_job(site, "vm1", dict(targets))
    assert names(tmp_path) == before
    assert names(tmp_path / "folder") == []


@pytest.mark.usefixtures("revision")
def test_the_options_choose_the_revision_and_the_disk(site: Site, made: Made, folder: Path) -> None:
    made.backup(vda=b"newer", vdb=b"newer")
    options = RestoreOptions(spec="first", disk="vdb")
    assert restore_job(site, "vm1", str(folder), options).revision.id == made.ids()[0]
    assert names(folder) == ["vdb.img"]
    assert (folder / "vdb.img").read_bytes() == VDB


HOOK = 'cat >>"$0/said"; echo >>"$0/said"; echo told'


def test_hooks_run_around_each_disk_and_are_told_of_it(
    configured: Configure, revision: Revision, tmp_path: Path, folder: Path
) -> None:
    heard = Listener()
    site = configured(before_restore=HOOK, after_restore=HOOK)
    restore_job(site, "vm1", str(folder), watcher=heard)
    said = [json.loads(line) for line in (tmp_path / "said").read_text().split("\n") if line]
    assert [(each["event"], each["revision"], each["disk"], each["target"]) for each in said] == [
        (event, revision.id, name, f"{folder}/{name}.img")
        for name in CONTENT
        for event in ("before-restore", "after-restore")
    ]
    assert heard.notes[0] == "hook before-restore /bin/sh: told"


@pytest.mark.usefixtures("revision")
def test_a_hook_that_fails_keeps_the_target_as_it_is(
    configured: Configure, tmp_path: Path, folder: Path
) -> None:
    site = configured(before_restore="exit 3", after_restore='echo >>"$0/after"')
    with pytest.raises(HookError):
        restore_job(site, "vm1", str(folder))
    assert names(folder) == []
    assert (tmp_path / "after").exists()


def bad_target(tmp_path: Path) -> str:
    (tmp_path / "source.img").touch()
    return str(tmp_path / "source.img")


@pytest.mark.parametrize(
    ("target", "disk", "error"),
    [
        pytest.param(bad_target, "vda", TargetError, id="the-source"),
        pytest.param(lambda path: str(path / "base/vm1/x"), "vda", TargetError, id="repository"),
        pytest.param(lambda _: "tape:nst0", "vda", UsageError, id="unknown-target"),
        pytest.param(lambda path: str(path / "x"), "vdc", NotFoundError, id="unknown-disk"),
        pytest.param(lambda path: str(path / "x"), None, NotFoundError, id="several-disks"),
    ],
)
@pytest.mark.usefixtures("revision")
def test_a_mistake_runs_no_hook(
    configured: Configure,
    tmp_path: Path,
    target: Callable[[Path], str],
    disk: str | None,
    error: type[Exception],
) -> None:
    source = {"type": "file", "disks": {"vda": str(tmp_path / "source.img")}}
    site = configured(source, before_restore=HOOK, after_restore=HOOK)
    with pytest.raises(error):
        restore_job(site, "vm1", target(tmp_path), RestoreOptions(disk=disk))
    assert not (tmp_path / "said").exists()


@pytest.mark.usefixtures("revision")
def test_a_hook_can_make_the_target(configured: Configure, tmp_path: Path) -> None:
    site = configured(before_restore='mkdir -p "$0/mounted"')
    restore_job(site, "vm1", {"vda": str(tmp_path / "mounted" / "a.img")})
    assert (tmp_path / "mounted" / "a.img").read_bytes() == VDA


@pytest.mark.usefixtures("revision")
def test_what_a_hook_made_the_source_is_refused(configured: Configure, tmp_path: Path) -> None:
    (tmp_path / "source.img").write_bytes(b"precious")
    source = {"type": "file", "disks": {"vda": str(tmp_path / "source.img")}}
    site = configured(source, before_restore='ln -s "$0/source.img" "$0/a.img"')
    with pytest.raises(TargetError, match="is the source of disk vda"):
        restore_job(site, "vm1", {"vda": str(tmp_path / "a.img")})
    assert (tmp_path / "source.img").read_bytes() == b"precious"


def of_exec(path: Path) -> dict[str, Any]:
    return {"type": "exec", "command": ["/bin/false"], "settings": {"volume": str(path)}}


def of_file(path: Path) -> dict[str, Any]:
    return {"type": "file", "disks": {"vda": str(path)}}


def of_image(path: Path) -> dict[str, Any]:
    return {"type": "image", "disks": {"vda": {"path": str(path), "format": "raw"}}}


@pytest.mark.parametrize("make", [of_exec, of_file, of_image], ids=["exec", "file", "image"])
@pytest.mark.parametrize("is_configured", [True, False], ids=["configured", "remembered"])
@pytest.mark.usefixtures("revision")
def test_the_source_is_not_overwritten_without_asking_for_it(
    configured: Configure,
    site: Site,
    made: Made,
    tmp_path: Path,
    make: Callable[[Path], dict[str, Any]],
    is_configured: bool,
) -> None:
    path = tmp_path / "source.img"
    path.write_bytes(b"precious")
    if is_configured:
        site = configured(make(path))
    else:
        made.repository.remember_source(make(path))
    with pytest.raises(TargetError, match="is the source of disk v") as caught:
        restore_job(site, "vm1", {"vda": str(path)})
    assert "--over-source" in caught.value.hint
    assert path.read_bytes() == b"precious"
    restore_job(site, "vm1", {"vda": str(path)}, RestoreOptions(over_source=True))
    assert path.read_bytes() == VDA


@pytest.mark.usefixtures("revision")
def test_a_source_whose_plug_in_is_not_there_is_warned_of_and_the_disk_comes_back(
    site: Site, made: Made, tmp_path: Path
) -> None:
    made.repository.remember_source({"type": "tape", "device": str(tmp_path / "a.img")})
    heard = Listener()
    restore_job(site, "vm1", {"vda": str(tmp_path / "a.img")}, watcher=heard)
    assert (tmp_path / "a.img").read_bytes() == VDA
    assert heard.warnings == [
        "cannot check whether the target is the source: there is no source 'tape'"
    ]


def test_what_is_complete_is_told_though_another_disk_fails(
    site: Site, made: Made, revision: Revision, folder: Path
) -> None:
    made.chunk(revision, 0, "vdb").write_bytes(b"damaged")
    heard = Listener()
    with pytest.raises(DamagedError, match="vdb"):
        restore_job(site, "vm1", str(folder), watcher=heard, on_disk=heard.disks.append)
    assert [each.disk for each in heard.disks] == ["vda"]
    assert names(folder) == ["vda.img"]


def test_what_is_lost_or_healed_is_told_disk_by_disk_with_who_could_not_be_asked(
    configured: Configure, made: Made, revision: Revision, tmp_path: Path, folder: Path
) -> None:
    site = configured({"type": "file", "disks": {"vdb": str(tmp_path / "vdb.img")}})
    for name in CONTENT:
        made.chunk(revision, 0, name).write_bytes(b"damaged")
    (tmp_path / "vdb.img").write_bytes(VDB)
    heard = Listener()
    options = RestoreOptions(keep_going=True, overwrite=True)
    result = restore_job(site, "vm1", str(folder), options, watcher=heard)
    assert [(each.lost, each.healed) for each in result.disks] == [
        (((0, BLOCK),), ()),
        ((), ((0, BLOCK),)),
    ]
    assert (result.lost, list(result.unasked)) == (1, [])
    assert heard.warnings == [
        f"disk vda: bytes 0 to {BLOCK} are lost; the target has zeroes there",
        f"disk vdb: bytes 0 to {BLOCK} were damaged; a good copy was used",
    ]
    assert (folder / "vda.img").read_bytes() == bytes(BLOCK) + VDA[BLOCK:]
    assert (folder / "vdb.img").read_bytes() == VDB
    (tmp_path / "vdb.img").unlink()
    [unasked] = restore_job(site, "vm1", str(folder), options).unasked
    assert unasked.startswith("The source could not be asked: opening the source")


def test_what_somebody_put_beside_the_disks_overwrites_nothing_and_gives_nothing_away(
    site: Site, made: Made, revision: Revision, folder: Path, tmp_path: Path
) -> None:
    stored = made.repository.folder_of(revision).path
    for name in (".profile", "vm2.img", "vm2.blocks"):
        (stored / name).write_text("hostile")
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (folder / "vm2.img").write_text("another machine")
    (stored / "linked.xml").symlink_to(secret)
    heard = Listener()
    assert restore_job(site, "vm1", str(folder), watcher=heard).files == []
    assert [text for text in heard.warnings if "linked.xml was not saved by a source" in text]
    (stored / "linked.xml").unlink()
    (stored / "vm.xml").write_text("<domain/>")
    (folder / "vm.xml").symlink_to(secret)
    again = RestoreOptions(overwrite=True)
    assert restore_job(site, "vm1", str(folder), again).files == [folder / "vm.xml"]
    assert (folder / "vm.xml").read_text() == "<domain/>"
    assert secret.read_text() == "secret"
    assert (folder / "vm2.img").read_text() == "another machine"
    assert names(folder) == ["vda.img", "vdb.img", "vm.xml", "vm2.img"]


@pytest.mark.usefixtures("revision")
def test_a_link_that_waits_in_the_folder_is_not_written_through(
    site: Site, folder: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("another machine")
    (folder / "vdb.img").symlink_to(victim)
    with pytest.raises(TargetError, match=r"vdb\.img is a link"):
        restore_job(site, "vm1", str(folder))
    assert victim.read_text() == "another machine"
    assert names(folder) == ["vdb.img"]


SPARSE = sample(200_000) + bytes(5 * MiB) + sample(70_000, seed=1)


@pytest.mark.parametrize("old", [None, bytes(len(SPARSE)), SPARSE[:3_000_000] + b"old" * 10])
@pytest.mark.parametrize("verifies", [False, True], ids=["", "verify"])
def test_progress_counts_data_and_no_holes_and_comes_to_its_end(
    tmp_path: Path, old: bytes | None, verifies: bool
) -> None:
    made = Made(tmp_path)
    made.backup(vda=SPARSE, vdb=bytes(5 * MiB) + b"end")
    folder = tmp_path / "folder"
    folder.mkdir()
    if old is not None:
        (folder / "vda.img").write_bytes(old)
    heard = Listener()
    verify = verify_target if verifies else None
    options = RestoreOptions(overwrite=True, differ=Differential, verify=verify)
    restore_job(Site(tmp_path), "vm1", str(folder), options, watcher=heard)
    assert (folder / "vda.img").read_bytes() == SPARSE
    assert heard.done == heard.total
    assert old or heard.total <= (1 + verifies) * (3 * MiB + 3)
