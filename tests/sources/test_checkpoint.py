"""What this server leaves in a storage is found by its name, and nobody else's is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backy.sources.checkpoint import CheckpointNames

REVISION = "20261123T004938Z-x7k2"


def test_a_name_has_the_revision_and_the_server() -> None:
    assert CheckpointNames("web-1.example").name(REVISION) == f"backy-{REVISION}-web_1.example"


def test_without_a_setting_the_host_is_the_server() -> None:
    name = CheckpointNames().name(REVISION)
    assert name.startswith(f"backy-{REVISION}-")
    assert CheckpointNames().revision_of(name) == REVISION


@given(st.text(max_size=300))
def test_any_server_finds_its_own_names_which_any_storage_takes(server: str) -> None:
    name = CheckpointNames(server).name(REVISION)
    assert CheckpointNames(server).revision_of(name) == REVISION
    assert len(name) <= 100
    assert name.isascii()
    assert not set(name) & set("/@ \n\0'\"")


@pytest.mark.parametrize(
    "name",
    [
        "daily",
        f"backy-{REVISION}",
        f"backy-{REVISION}-other",
        f"backy-{REVISION}-web1x",
        f"mybacky-{REVISION}-web1",
        "backy--web1",
        "backy-20269999T999999Z-x7k2-web1",
        f"backy-{REVISION}-web1-web1",
        "",
    ],
)
def test_what_others_made_is_not_ours(name: str) -> None:
    assert CheckpointNames("web1").revision_of(name) is None
