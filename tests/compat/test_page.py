"""COMPATIBILITY.md says what the calls say, of every command of the engine."""

from __future__ import annotations

import difflib

import pytest

from tests.compat.measure import CANNOT_SUCCEED, NORMALISED, Seen, agree, measure
from tests.compat.page import PAGE, is_container, render, saved
from tests.compat.remarks import DIFFERENT, REMARKS


@pytest.fixture(scope="module")
def seen() -> dict[str, Seen]:
    return measure()


def test_every_command_is_called_with_arguments_that_succeed(seen: dict[str, Seen]) -> None:
    assert not [name for name, row in seen.items() if not row.calls]
    missing = [name for name, row in seen.items() if not row.succeeded and not is_container(row, seen)]
    assert not [name for name in missing if not name.startswith(CANNOT_SUCCEED)]


def test_every_difference_has_its_reason(seen: dict[str, Seen]) -> None:
    different = {row.name for row in seen.values() if row.status == "differs"}
    assert different == DIFFERENT.keys()


def test_what_is_said_of_single_commands_is_of_commands_that_exist(seen: dict[str, Seen]) -> None:
    names = {row.name for row in seen.values()}
    assert not {*DIFFERENT, *REMARKS} - names
    assert not NORMALISED.keys() - seen.keys()


def test_the_page_is_what_the_calls_say(seen: dict[str, Seen]) -> None:
    written, said = PAGE.read_text(), render(seen, saved())
    lines = difflib.unified_diff(written.splitlines(), said.splitlines(), PAGE.name, "seen", n=0, lineterm="")
    difference = "\n".join(lines)
    assert written == said, f"run make compat:\n{difference}"


@pytest.mark.parametrize(
    "name, ours, plain",
    [
        ("get", b"$1\r\na\r\n", b"$1\r\nb\r\n"),
        ("smembers", b"*2\r\n:1\r\n:2\r\n", b"*2\r\n:2\r\n:1\r\n"),
        ("keys", b"*2\r\n:1\r\n:2\r\n", b"*2\r\n:1\r\n:3\r\n"),
        ("time", b"*1\r\n:1\r\n", b"*2\r\n:1\r\n:1\r\n"),
        ("time", b"-ERR a\r\n", b"-ERR b\r\n"),
        ("client|info", b"$6\r\nid=1 a\r\n", b"$6\r\nfd=1 a\r\n"),
    ],
)
def test_the_comparison_sees_a_difference(name: str, ours: bytes, plain: bytes) -> None:
    assert not agree(name, [ours], [plain])
    assert agree(name, [ours], [ours])
