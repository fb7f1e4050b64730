"""A real browser without a window: what it makes of a page, and a picture of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.monitoring.prometheus import program

_QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)


def document(url: str, folder: Path) -> str:
    """The page's HTML once its scripts have run."""
    return _chromium(url, folder, "--dump-dom")


def picture(url: str, file: Path, folder: Path, size: tuple[int, int]) -> None:
    """Writes a PNG of the page, ``size`` pixels wide and high."""
    _chromium(url, folder, f"--screenshot={file}", f"--window-size={size[0]},{size[1]}")


def _chromium(url: str, folder: Path, *more: str) -> str:
    command = [program("chromium", "chromium"), *_QUIET, f"--user-data-dir={folder / 'browser'}"]
    # In virtual time nothing is waited for but answers to what the page asks.
    shown = subprocess.run(
        [*command, "--virtual-time-budget=5000", *more, url], capture_output=True, text=True, timeout=120
    )
    assert shown.returncode == 0, shown.stderr
    return shown.stdout
