"""What installing leaves behind where only some of what is compiled can be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("Cython")  # of the build alone, not of the tests
pytest.importorskip("setuptools")

ROOT = Path(__file__).parents[2]

# Makes empty files of everything, but for what the variable names.
COMPILER = """#!/bin/sh
case "$*" in *"$FAILS"*) exit 1;; esac
for argument; do [ "$before" = -o ] && : >"$argument"; before=$argument; done
"""


class Sources:
    """A copy of what a build reads, and a compiler that fails where it is told to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "proxy", folder / "proxy", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, folder)
        self.compiler = folder / "compiler"
        self.compiler.write_text(COMPILER)
        self.compiler.chmod(0o755)

    def build(self, fails: str) -> set[str]:
        """Build in place; the names of the modules that are compiled then."""
        environment = {**os.environ, "FAILS": fails, "CC": str(self.compiler), "LDSHARED": str(self.compiler)}
        built = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--force"],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert built.returncode == 0, built.stderr
        return {library.name.partition(".")[0] for library in (self.folder / "proxy").rglob("*.so")}


def test_the_data_plane_is_compiled_whole_or_not_at_all_and_nothing_of_an_earlier_build_stays(tmp_path: Path) -> None:
    sources = Sources(tmp_path)
    data_plane = {"tally", "base", "requests", "lane", "client", "plane"}
    assert sources.build("nothing") == {"_compiled", *data_plane}
    assert sources.build("dataplane/lane") == {"_compiled"}
    assert sources.build("codec/_compiled") == data_plane
    assert sources.build("") == set()
