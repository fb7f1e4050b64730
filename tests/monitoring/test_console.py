"""Prometheus' own console, as a browser shows it."""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from deploy.dashboards.overview import PAGE
from tests.monitoring.browser import document, picture
from tests.monitoring.conftest import Watched

pytestmark = pytest.mark.monitoring
PAGE_PATH = "/consoles/ackgate.html?range=60"
SIZE = (1280, 1160)


class Shown(HTMLParser):
    """The values of tiles, the rows of the table, and for each graph how many lines it has and what it says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tiles: list[str] = []
        self.rows: list[str] = []
        self.graphs: dict[str, int] = {}
        self.state = ""
        self._inside: list[str] = []
        self._graph = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self._inside.append(tag)
        if tag == "body":
            self.state = named.get("data-state") or ""
        elif tag == "figure":
            self._graph = named["data-panel"] or ""
            self.graphs[self._graph] = 0
        elif tag == "path":
            self.graphs[self._graph] += 1
        elif tag == "tr":
            self.rows.append("")

    def handle_data(self, data: str) -> None:
        if self._inside[-1:] == ["b"] and not self.graphs:
            self.tiles.append(data)
        elif self._inside[-1:] == ["td"]:
            self.rows[-1] += f"{data} "

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass


@pytest.fixture(scope="module")
def shown(watched: Watched, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    return Shown(document(watched.prometheus.url + PAGE_PATH, tmp_path_factory.mktemp("document")))


def test_the_page_is_drawn(shown: Shown) -> None:
    assert shown.state == "drawn"


def test_every_tile_has_its_figure(shown: Shown) -> None:
    assert len(shown.tiles) >= len(PAGE.rows[0].panels)
    for panel, figure in zip(PAGE.rows[0].panels, shown.tiles, strict=False):
        assert re.search(r"\d", figure), f"{panel.title}: {figure}"


def test_every_graph_has_lines(shown: Shown) -> None:
    titles = [panel.title for row in PAGE.rows[1:] for panel in row.panels]
    assert list(shown.graphs) == titles
    assert [title for title, lines in shown.graphs.items() if not lines] == []


def test_the_table_has_the_shards(shown: Shown) -> None:
    rows = [row for row in shown.rows if row]
    assert len(rows) == 3
    assert all(re.match(r"[0-9a-f]{8} answers \d+ 1 \S+ $", row) for row in rows), rows


def test_a_picture_is_taken(watched: Watched, tmp_path: Path) -> None:
    """``ACKGATE_PICTURE`` names a file that is to be kept."""
    file = Path(os.environ.get("ACKGATE_PICTURE") or tmp_path / "overview.png")
    picture(watched.prometheus.url + PAGE_PATH, file, tmp_path, SIZE)
    assert file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 20_000
