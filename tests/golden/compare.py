r"""Files that fix the formats on disk byte by byte.

A repository that one version wrote must be read by the next, and by restore.sh. So what backy
writes is compared with the files in this folder. Where a format is to change, run

    BACKY_UPDATE_GOLDEN=1 python -m pytest \
        tests/stores/test_index.py tests/repository/test_records.py

which writes them anew; look at the difference, raise the format's version, and say so in
docs/formats.md and CHANGELOG.md.
"""

import os
from pathlib import Path

FOLDER = Path(__file__).parent
SWITCH = "BACKY_UPDATE_GOLDEN"


def assert_golden(name: str, content: bytes) -> None:
    """Fail where `content` is not the golden file of that name, or write it where that is asked."""
    if os.environ.get(SWITCH) == "1":
        (FOLDER / name).parent.mkdir(exist_ok=True)
        (FOLDER / name).write_bytes(content)
    expected = (FOLDER / name).read_bytes()
    assert content == expected, f"{name} differs; see {Path(__file__).name} for what to do"
