"""Reading the configuration: all that is right in it counts, all that is wrong is named at once.

Every file in golden/config/valid loads without a problem. Every one in golden/config/invalid has
problems, and beside it what is said of them; BACKY_UPDATE_GOLDEN=1 writes that anew.
"""

import atexit
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from backy.config import loader as configfile
from backy.config.loader import Loaded, Problem, ProblemsError, load, read_global, schema
from backy.config.settings import Config, Hooks, Interval, Scrub
from backy.errors import ConfigError
from backy.model.names import check_job
from backy.sources import open_source
from tests.golden.compare import FOLDER, assert_golden

# A copy that is ours: as root backy refuses a configuration in somebody else's checkout.
COPY = Path(tempfile.mkdtemp(prefix="backy-config-"))
atexit.register(shutil.rmtree, COPY, ignore_errors=True)
shutil.copytree(FOLDER / "config", COPY / "config")
CONTRIB = COPY / "contrib.yaml"
shutil.copy(Path(__file__).parents[2] / "contrib" / "backy.yaml", CONTRIB)
VALID = COPY / "config" / "valid"
INVALID = COPY / "config" / "invalid"
LOADERS = [
    pytest.param(yaml.SafeLoader, id="python"),
    pytest.param(getattr(yaml, "CSafeLoader", yaml.SafeLoader), id="libyaml"),
]
GOOD = """\
schedules: {default: {daily: {interval: 1d, keep: 9}}}
defaults: {schedule: default}
jobs: {vm1: {source: {type: file, filename: /dev/vm1}}}
"""
JOB = "{source: {type: file, filename: /dev/vm2}}"
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write backy.yaml, and files in jobs.d beside it; gives its path."""

    def write(main: str | bytes, **jobs: str | bytes) -> Path:
        (tmp_path / "jobs.d").mkdir()
        for name, text in {
            "backy": main,
            **{f"jobs.d/{name}": jobs[name] for name in jobs},
        }.items():
            content = text.encode() if isinstance(text, str) else text
            (tmp_path / f"{name}.yaml").write_bytes(content)
        return tmp_path / "backy.yaml"

    return write


def problems(path: Path) -> list[str]:
    """What is said of a configuration, without the folder that it is in."""
    try:
        found = load(path, open_source).problems
    except ProblemsError as error:
        found = error.problems
    return [str(each).removeprefix(f"{path.parent}/") for each in found]


def samples(folder: Path) -> list[Any]:
    """The main files in a folder."""
    found = [path for path in folder.iterdir() if path.suffix in {".yaml", ".conf"}]
    found += folder.glob("*/backy.yaml")
    return [
        pytest.param(path, id=str(path.relative_to(folder).with_suffix("")))
        for path in sorted(found)
    ]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("path", [*samples(VALID), pytest.param(CONTRIB, id="contrib")])
def test_a_sample_loads(path: Path, loader: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configfile, "_LOADER", loader)
    assert problems(path) == []


@pytest.mark.parametrize("path", samples(INVALID))
def test_what_is_wrong_is_said_with_file_line_and_key(path: Path) -> None:
    said = [f"{text}\n".replace(f"{path.parent}/", "") for text in problems(path)]
    assert said
    name = path.with_suffix(".txt").relative_to(COPY)
    if path.name == "backy.yaml":
        name = path.parent.with_suffix(".txt").relative_to(COPY)
    assert_golden(str(name), "".join(said).encode())


def test_a_sample_of_all_keys_has_all_keys() -> None:
    said = yaml.safe_load((VALID / "full.yaml").read_text())
    vm1 = said["jobs"]["vm1"]
    made = load(VALID / "full.yaml", open_source).config
    assert said.keys() == keys(made)
    assert said["global"].keys() == keys(made.global_)
    assert said["defaults"].keys() == vm1.keys() == keys(made.jobs["vm1"])
    assert said["hooks"].keys() | vm1["hooks"].keys() | said["defaults"]["hooks"].keys() == keys(
        Hooks()
    )
    assert vm1["hooks"]["before-snapshot"].keys() == keys(made.jobs["vm1"].hooks.before_snapshot[0])
    assert vm1["scrub"].keys() == keys(Scrub())


def keys(value: BaseModel) -> set[str]:
    """The keys in YAML of a part of the configuration."""
    return {str(field.alias) for field in type(value).model_fields.values()}


def test_the_configuration_of_backy_2_means_the_same() -> None:
    config = load(VALID / "backy2.conf", open_source).config
    assert config.global_.base_dir == Path("/my/backydir")
    assert config.global_.worker_limit == 3
    assert config.hooks_of("test01").after_backup[0].command == ("/path/to/script.sh", "test01")
    assert config.intervals("test02") == {
        "daily": Interval(interval=86400, keep=9),
        "weekly": Interval(interval=7 * 86400, keep=5),
        "monthly": Interval(interval=30 * 86400, keep=4),
    }


def test_the_shipped_file_says_what_holds_without_it(write: Write) -> None:
    lines = CONTRIB.read_text().splitlines()
    path = write("\n".join(line[1:] if line.startswith("#  ") else line for line in lines))
    made = load(path, open_source)
    assert made.problems == ()
    assert made.config.global_ == Config().global_
    vm1 = made.config.jobs["vm1"]
    assert (vm1.minimum, vm1.trash, vm1.scrub) == (1, 7 * 86400, Scrub())
    assert vm1.schedule == "frequent"
    assert len(vm1.hooks.before_snapshot) == 1


def test_jobs_of_all_files_are_there_but_not_those_of_hidden_files() -> None:
    folder = VALID / "folder"
    made = load(folder / "backy.yaml", open_source)
    assert list(made.config.jobs) == ["vm0", "vm1", "vm2", "vm3"]
    assert made.files == tuple(
        folder / name for name in ["backy.yaml", "jobs.d/a.yaml", "jobs.d/b.yaml"]
    )


def test_a_file_that_is_included_by_its_name_may_be_hidden(write: Write) -> None:
    path = write(f"{GOOD}include: [.more.yaml]\n")
    path.with_name(".more.yaml").write_text(f"vm2: {JOB}")
    assert list(load(path, open_source).config.jobs) == ["vm1", "vm2"]


@pytest.mark.parametrize(
    ("sample", "jobs"),
    [
        pytest.param("unknown-key-in-a-job.yaml", ["vm2"], id="key"),
        pytest.param("unknown-schedule.yaml", ["vm1"], id="schedule"),
        pytest.param("bad-job-name.yaml", [], id="name"),
        pytest.param("unknown-source-type.yaml", [], id="source"),
        pytest.param("bad-files-in-the-folder/backy.yaml", ["vm1", "vm4"], id="files"),
        pytest.param("include-that-is-missing.yaml", ["vm1"], id="missing-file"),
    ],
)
def test_what_is_wrong_in_a_job_or_an_included_file_stops_no_other_job(
    sample: str, jobs: list[str]
) -> None:
    assert list(load(INVALID / sample, open_source).config.jobs) == jobs


def test_a_job_that_is_there_twice_counts_as_it_is_there_first() -> None:
    made = load(INVALID / "same-job-in-two-files" / "backy.yaml", open_source).config
    assert [job.source["filename"] for job in made.jobs.values()] == [
        "/dev/vg0/vm1", "/dev/vg0/vm2", "/dev/vg0/vm3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "sample",
    [
        *("syntax", "tab", "unknown-key-at-the-top", "keep-0", "limit-0"),
        *("duplicate-section", "jobs-that-are-a-list"),
    ],
)
def test_nothing_runs_with_a_main_file_that_is_wrong(sample: str) -> None:
    with pytest.raises(ProblemsError):
        load(INVALID / f"{sample}.yaml", open_source)


def test_the_error_names_the_first_problem_and_how_to_see_the_others() -> None:
    with pytest.raises(ConfigError) as caught:
        load(INVALID / "several.yaml", open_source)
    assert "several.yaml:2: global.worker-limit: '0' is less than 1, and 7 more" in str(
        caught.value
    )
    assert caught.value.hint == "backy config check lists all of them."


def test_a_single_problem_has_no_others() -> None:
    with pytest.raises(ProblemsError) as caught:
        load(INVALID / "limit-0.yaml", open_source)
    assert str(caught.value).endswith("limits.nfs: 0 is less than 1")


@pytest.mark.parametrize(
    ("settings", "trash"),
    [
        pytest.param("trash: 2d", 2 * 86400, id="own"),
        pytest.param("minimum: 2", 3 * 86400, id="default"),
        pytest.param("trash:", 3 * 86400, id="without-a-value"),
        pytest.param("trash: 0", 0, id="own-is-zero"),
    ],
)
def test_a_job_has_the_defaults_for_what_it_does_not_say(
    settings: str, trash: int, write: Write
) -> None:
    path = write(
        GOOD.replace("default}\n", "default, trash: 3d}\n"), b=f"vm2: {JOB[:-1]}, {settings} }}"
    )
    assert load(path, open_source).config.jobs["vm2"].trash == trash


def test_every_source_is_looked_at_as_its_job_has_it(write: Write) -> None:
    seen: list[object] = []
    load(write(GOOD, b=f"vm2: {JOB}"), seen.append)
    assert seen == [{"type": "file", "filename": f"/dev/vm{number}"} for number in (1, 2)]


def test_only_what_comes_before_it_is_read_for_the_settings_of_the_daemon(write: Write) -> None:
    path = write("limits: {a: 1}\nglobal: {base-dir: /srv/b}\njobs: [{{{\n\tsyntax")
    assert read_global(path).base_dir == Path("/srv/b")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("global: {nice: 20}", ":1: global.nice: '20' is more than 19", id="value"),
        pytest.param("jobs: {}\nglobal: {", "not plain YAML", id="syntax"),
        pytest.param("global: {}\nglobal: {nice: 1}", None, id="later-ones-are-not-read"),
    ],
)
def test_settings_of_the_daemon_that_are_wrong_are_named(
    text: str, said: str | None, write: Write
) -> None:
    path = write(text)
    if said is None:
        assert read_global(path) == Config().global_
    else:
        with pytest.raises(ProblemsError, match=said):
            read_global(path)


@pytest.mark.parametrize("path", sorted(VALID.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_schema_takes_what_loads(path: Path) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text()), schema())


@pytest.mark.parametrize(
    "sample", ["unknown-key-at-the-top", "unknown-key-in-a-job", "wrong-types", "several"]
)
def test_the_schema_refuses_what_does_not_load(sample: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load((INVALID / f"{sample}.yaml").read_text()), schema())


# Hostile input: whatever the bytes are, there is a list of problems, and good jobs run.


def nested(opening: str, closing: str = "") -> str:
    return f"jobs: {opening * 100_000}{closing * 100_000}"


LAUGHS = "".join(f"k{n}: &a{n} [{', '.join(9 * [f'*a{n - 1}'])}]\n" for n in range(1, 50))


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(nested("[", "]"), id="deep-lists"),
        pytest.param(nested("{a: ", "}"), id="deep-mappings"),
        pytest.param(nested("["), id="deep-and-open"),
        pytest.param("".join(f"{' ' * n}a:\n" for n in range(300)), id="deep-blocks"),
        pytest.param(f"a: &a0 x\n{LAUGHS}", id="billion-laughs"),
        pytest.param("a: &a [*a]", id="alias-of-itself"),
        pytest.param("? {a: b}\n: c", id="mapping-as-key"),
        pytest.param("? &a k\n: x\n*a : y", id="alias-as-key"),
        pytest.param("a: !!python/object/new:os.system [id]", id="python"),
        pytest.param("a: !!binary aGk=", id="binary-tag"),
        pytest.param("%YAML 9.9\n---\na: b", id="version"),
        pytest.param(b"\x00", id="zero"),
        pytest.param(b"a: \xff\xfe\xfa", id="no-utf-8"),
        pytest.param(b"\xff\xfea", id="half-utf-16"),
        pytest.param("a: \x07", id="control-character"),
        pytest.param("a: \x1b[31m", id="escape-sequence"),
        pytest.param(f"a: {'9' * 10_000}", id="long-number"),
        pytest.param(f"{'a' * 100_000}: b", id="long-key"),
        pytest.param(f"global: {{nice: {'a' * 100_000}}}", id="long-value"),
        pytest.param(f"jobs: {{{'a' * 2000}: b}}", id="long-name-of-a-job"),
        pytest.param('jobs: {"a\\nb": {"c\\e[31m": 1}}', id="name-with-a-new-line"),
        pytest.param("jobs: {vm1: {schedule: {a: {b: [1, {c: d}]}}, hooks: [[[]]]}}", id="types"),
        pytest.param("global: {nice: 99999999999999999999999}", id="huge-number"),
        pytest.param("global: {base-dir: [/]}\ninclude: {a: b}", id="lists-for-text"),
        pytest.param('include: ["/", "", "..", "[", "*", "/*/*"]', id="strange-includes"),
    ],
)
def test_hostile_yaml_ends_in_problems_that_fit_in_a_line(
    content: str | bytes, loader: type, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configfile, "_LOADER", loader)
    path = write(content)
    said = problems(path)
    assert said
    for text in said:
        assert text.isprintable()
        assert len(text.replace(str(path.parent.parent), "")) < 700
    path.write_text(GOOD)
    (path.parent / "jobs.d" / "b.yaml").write_bytes(
        content.encode() if isinstance(content, str) else content
    )
    assert load(path, open_source).config.jobs.keys() == {"vm1"}


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode), st.data())
def test_bytes_anywhere_in_a_file_raise_nothing_but_a_list_of_problems(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, data: st.DataObject
) -> None:
    sample = (VALID / "full.yaml").read_bytes()
    start = data.draw(st.integers(0, len(sample)))
    end = data.draw(st.integers(start, min(start + 50, len(sample))))
    path = tmp_path_factory.mktemp("noise") / "backy.yaml"
    path.write_bytes(sample[:start] + noise + sample[end:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configfile, "_LOADER", data.draw(st.sampled_from(LOADERS)).values[0])
        for text in problems(path):
            assert text.isprintable()


@pytest.mark.parametrize(
    ("limit", "value", "said"),
    [
        pytest.param("_LARGEST_FILE", 100, "cannot be read: larger than 100 bytes", id="bytes"),
        pytest.param("_MOST_KEYS", 5, "not plain YAML: it is too deep or too long", id="keys"),
        pytest.param("_DEEPEST", 2, "not plain YAML: it is too deep or too long", id="depth"),
    ],
)
def test_a_file_has_limits(
    limit: str, value: int, said: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(GOOD)
    monkeypatch.setattr(configfile, limit, value)
    (problem,) = problems(path)
    assert problem.endswith(f": {said}")


def test_a_file_may_have_64_mib(write: Write) -> None:
    path = write(GOOD)
    os.truncate(path, 64 * 1024**2 + 1)
    assert problems(path) == ["backy.yaml:1: cannot be read: larger than 67108864 bytes"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(lambda path: None, "No such file or directory", id="missing"),
        pytest.param(Path.mkdir, "not a regular file", id="folder"),
        pytest.param(os.mkfifo, "not a regular file", id="fifo"),
        pytest.param(lambda path: path.symlink_to(path), "Too many levels", id="link-to-itself"),
    ],
)
def test_what_is_no_file_cannot_be_read(
    make: Callable[[Path], object], said: str, write: Write
) -> None:
    path = write(GOOD)
    included = path.parent / "jobs.d" / "b.yaml"
    make(included)
    if included.exists() or included.is_symlink():
        assert f"jobs.d/b.yaml:1: cannot be read: {said}" in problems(path)[0]
    path.unlink()
    make(path)
    with pytest.raises(ProblemsError, match=f"backy.yaml:1: cannot be read: {said}"):
        load(path, open_source)


def test_a_file_name_that_nobody_can_read_is_shown_escaped(write: Write) -> None:
    path = write(GOOD)
    (path.parent / "jobs.d" / "a\nb\udcff.yaml").touch()
    (said,) = problems(path)
    assert r"jobs.d/a\nb\udcff.yaml':1: not plain YAML: it is empty" in said


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (Problem(Path("a.yaml"), 7, "jobs.vm1", "missing"), "a.yaml:7: jobs.vm1: missing"),
        (Problem(Path("a.yaml"), 1, "", "cannot be read"), "a.yaml:1: cannot be read"),
    ],
    ids=["key", "file"],
)
def test_a_problem_is_one_line(problem: Problem, said: str) -> None:
    assert str(problem) == said


# Any configuration at all.

words = st.text(min_size=1, max_size=10).filter(lambda text: "\0" not in text)
job_names = (
    st.from_regex(r"[^\W_][\w.@+-]{0,12}", fullmatch=True)
    .map(lambda text: unicodedata.normalize("NFC", text))
    .filter(lambda text: not is_refused(text))
)
tags = st.from_regex(r"[a-z0-9][a-zA-Z0-9.:@-]{0,9}", fullmatch=True).filter(
    lambda tag: ".." not in tag and not tag.startswith("manual:")
)
paths = st.text("abc/. é'\"#:-", max_size=9).map(lambda text: f"/{text}")
durations = st.integers(1, 1800).flatmap(
    lambda count: st.sampled_from([count, *(f"{count}{unit}" for unit in "smhdw")])
)
short = st.integers(1, 1800).map(lambda count: f"{count}s")
limits = st.sampled_from(["nfs", "ceph", "1", "yes"])
schedules = st.sampled_from(["default", "on", "007", "~"])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=5,
)
hook = words | st.fixed_dictionaries(
    {"command": words | st.lists(words, min_size=1, max_size=3)},
    optional={
        "timeout": short,
        "required": st.booleans(),
        "consistency": st.sampled_from(["application", "filesystem"]),
    },
)
hooks = st.dictionaries(
    st.sampled_from([str(field.alias) for field in Hooks.model_fields.values()]),
    hook | st.lists(hook, max_size=2),
    max_size=3,
)
scrub = st.booleans() | st.fixed_dictionaries(
    {},
    optional={
        "within": durations,
        "rate": st.sampled_from(["1MiB", "1.5GiB", 2**40]),
        "max-duration": durations,
    },
)
source = st.dictionaries(st.text(max_size=8), values, max_size=3)
settings: dict[str, st.SearchStrategy[Any]] = {
    "schedule": schedules,
    "source": source,
    "store": st.sampled_from(["auto", "chunks", "images", None]),
    "block-size": st.integers(1, 256).map(lambda count: f"{count * 64}KiB"),
    "level": st.integers(1, 19),
    "limits": limits | st.lists(limits, max_size=2),
    "hooks": hooks,
    "expire": st.booleans() | st.sampled_from(["yes", "off"]),
    "minimum": st.integers(1, 10**9),
    "trash": durations,
    "scrub": scrub,
}
jobs = st.fixed_dictionaries(
    {"schedule": schedules, "source": source},
    optional={key: made for key, made in settings.items() if key not in {"schedule", "source"}},
)
tagged = st.dictionaries(
    tags,
    st.fixed_dictionaries({"interval": durations, "keep": st.integers(1, 10**6)}),
    min_size=1,
    max_size=3,
)
configurations = st.fixed_dictionaries(
    {
        "schedules": st.fixed_dictionaries(
            {"default": tagged, "on": tagged, "007": tagged, "~": tagged}
        ),
        "limits": st.fixed_dictionaries(
            {name: st.integers(1, 99) for name in ("nfs", "ceph", "1", "yes")}
        ),
        "jobs": st.dictionaries(job_names, jobs, max_size=3),
    },
    optional={
        "defaults": st.fixed_dictionaries({}, optional=settings),
        "hooks": hooks,
        "include": st.just([]) | st.just("more.d/*.yaml"),
        "global": st.fixed_dictionaries(
            {},
            optional={
                "base-dir": paths,
                "worker-limit": st.integers(1, 99),
                "socket": paths,
                "metrics-listen": st.sampled_from(["[::1]:80", "localhost:9436"]),
                "metrics-file": paths,
                "stop-timeout": durations,
                "nice": st.integers(0, 19),
                "io-class": st.sampled_from(["best-effort", "idle", "none"]),
                "backup-completed-callback": paths,
            },
        ),
    },
)


def is_refused(name: str) -> bool:
    try:
        check_job(name)
    except ConfigError:
        return True
    return False


def written(content: object, folder: Path) -> Loaded:
    """What a file with this content says."""
    path = folder / "backy.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return load(path, lambda source: None)


@given(configurations)
def test_any_configuration_survives_json_and_yaml(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    made = written(content, folder)
    assert made.problems == ()
    assert made.config.jobs.keys() == content["jobs"].keys()
    assert Config.model_validate_json(made.config.model_dump_json()) == made.config
    again = written(made.config.model_dump(mode="json"), folder)
    assert again.problems == ()
    assert again.config == made.config
    for job in made.config.jobs.values():  # as the daemon passes it to its children
        assert type(job).model_validate_json(job.model_dump_json()) == job
