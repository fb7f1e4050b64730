"""The units for systemd, as systemd's own tool sees them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.harness import ROOT

UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
MOST_EXPOSED = "20"  # tenths of what systemd-analyze calls exposure: 10 is a service that may do everything

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed (on Debian: apt install systemd)"
)


def as_installed(unit: Path, folder: Path) -> str:
    """The unit with a program that exists here, under the name of an instance if it is a template."""
    path = folder / unit.name.replace("@.", "@7001.")
    path.write_text(re.sub(r"(?m)^ExecStart=.*", "ExecStart=/bin/true", unit.read_text()))
    return str(path)


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_is_right(unit: Path, tmp_path: Path) -> None:
    result = analyze("verify", "--man=no", as_installed(unit, tmp_path))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_may_do_little(unit: Path, tmp_path: Path) -> None:
    result = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSED}", as_installed(unit, tmp_path))
    assert result.returncode == 0, result.stdout

