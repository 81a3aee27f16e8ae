"""The standard streams disturb nobody: what is lost is told, and descriptors 0 to 2 are taken."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from select import select

import pytest

from tests.cli.runner import environment

BEGIN = """
import os, sys
from backy.system import standard_streams
standard_streams.protect()
"""


def run(code: str, redirection: str = "") -> subprocess.CompletedProcess[str]:
    script = f'exec "$0" -c "$1" {redirection}'
    command = ["sh", "-c", script, sys.executable, BEGIN + code]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)


@pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_what_is_opened_later_is_never_a_standard_stream(tmp_path: Path, redirection: str) -> None:
    code = f"open({str(tmp_path / 'descriptor')!r}, 'w').write(str(os.open('/', os.O_RDONLY)))"
    assert run(code, redirection).returncode == 0
    assert int((tmp_path / "descriptor").read_text()) > 2


def test_a_closed_standard_output_refuses_what_is_written_past_python() -> None:
    result = run("os.write(1, b'a disk')", ">&-")
    assert "Bad file descriptor" in result.stderr


def test_programs_that_are_started_have_all_three_streams() -> None:
    code = "import subprocess; sys.exit(subprocess.call(['sh', '-c', 'read x; echo >&2; exit 5']))"
    assert run(code, "<&- >&- 2>&-").returncode == 5


@pytest.mark.parametrize(
    ("redirection", "trouble"),
    [
        pytest.param("", "", id="fine"),
        pytest.param(">/dev/full", "standard output: No space left on device", id="full-output"),
        pytest.param(">&-", "", id="closed-output"),
        pytest.param("</dev/null >&0", "standard output: Bad file descriptor", id="read-only"),
        pytest.param(
            ">/dev/full 3>&2 2>&1 ",
            "standard output: No space left on device, standard error: No space left on device",
            id="both",
        ),
    ],
)
def test_trouble_says_which_stream_lost_something_and_why(
    tmp_path: Path, redirection: str, trouble: str
) -> None:
    code = f"""
for _ in range(2):
    print("out")
    print("error", file=sys.stderr)
open({str(tmp_path / "trouble")!r}, "w").write(standard_streams.trouble())
"""
    assert run(code, redirection).returncode == 0
    assert (tmp_path / "trouble").read_text() == trouble


def test_what_is_written_after_a_failure_arrives_and_the_failure_is_not_forgotten(
    tmp_path: Path,
) -> None:
    """A log may not grow beyond 1,000 bytes, until the operator makes room."""
    code = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most[1]))
for stream in (sys.stdout, sys.stderr):
    print("1" * 999, file=stream, flush=True)
    print("2" * 999, file=stream, flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, most)
print("3", flush=True)
print("4", file=sys.stderr)
with open({str(tmp_path / "trouble")!r}, "w") as file:
    file.write(standard_streams.trouble())
"""
    out, err = tmp_path / "out", tmp_path / "err"
    assert run(code, f">{out} 2>{err}").returncode == 0
    assert out.read_text() == "1" * 999 + "\n3\n"
    assert err.read_text() == "1" * 999 + "\n4\n"
    why = "File too large"
    trouble = f"standard output: {why}, standard error: {why}"
    assert (tmp_path / "trouble").read_text() == trouble


def test_a_reader_that_is_gone_is_no_trouble() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    code = f"{BEGIN}print('out'); print(repr(standard_streams.trouble()), file=sys.stderr)"
    with os.fdopen(writer, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment(),
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "''\n")


def test_a_pipe_that_does_not_block_gets_everything() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    size = 4 * fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
    code = f"{BEGIN}print('x' * {size}); sys.exit(bool(standard_streams.trouble()))"
    process = subprocess.Popen([sys.executable, "-c", code], env=environment(), stdout=writer)
    os.close(writer)
    with process, os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"x" * size + b"\n"
    assert process.returncode == 0


def test_what_the_encoding_lacks_is_escaped_and_what_was_no_text_stays_as_it_was() -> None:
    code = "print('gr\\xf6\\xdfe 日', '\\udcff', file=sys.stderr); print('\\ud800')"
    command = [sys.executable, "-c", BEGIN + code]
    for encoding, shown in (("ascii", rb"gr\xf6\xdfe \u65e5"), ("utf-8", "größe 日".encode())):
        env = environment(PYTHONIOENCODING=encoding)
        done = subprocess.run(command, env=env, capture_output=True, check=True)
        assert done.stderr == shown + b" \xff\n"
        assert done.stdout == b"\\ud800\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_line_on_standard_error_can_be_read_at_once(unbuffered: str) -> None:
    """Logs of a server that runs for months go to a pipe."""
    code = BEGIN + "sys.stderr.write('a block is lost\\n'); sys.stdin.read()"
    env = environment(PYTHONUNBUFFERED=unbuffered)
    with subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as program:
        assert program.stdin
        assert program.stderr
        is_there = bool(select([program.stderr], [], [], 30)[0])
        program.stdin.close()
    assert is_there
