"""The data plane where nothing could be compiled: the same tests, on the Python alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, *argv], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_without_a_compiler_the_data_plane_behaves_the_same(tmp_path: Path) -> None:
    compiled = shutil.ignore_patterns("*.so", "__pycache__", Path(__file__).name, "test_building.py")
    for package in ("proxy", "shard", "tests"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=compiled)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    version = run(tmp_path, "-m", "proxy", "--version")
    assert "codec python, data plane python" in version.stdout, version
    tested = run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/dataplane")
    assert tested.returncode == 0, tested.stdout[-4000:]
    assert " passed" in tested.stdout
