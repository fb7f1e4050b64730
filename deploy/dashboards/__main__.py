"""``python -m deploy.dashboards``: writes Grafana's dashboards and the console anew."""

from __future__ import annotations

import json
from pathlib import Path

from deploy.dashboards.acknowledgments import PAGE as ACKNOWLEDGMENTS
from deploy.dashboards.commands import PAGE as COMMANDS
from deploy.dashboards.console import console
from deploy.dashboards.grafana import dashboard
from deploy.dashboards.overview import PAGE as OVERVIEW
from deploy.dashboards.proxies import PAGE as PROXIES
from deploy.dashboards.shards import PAGE as SHARDS

DEPLOY = Path(__file__).parents[1]
PAGES = (OVERVIEW, ACKNOWLEDGMENTS, SHARDS, COMMANDS, PROXIES)


def files() -> dict[Path, str]:
    """What is to stand in which file."""
    written = {
        DEPLOY / "grafana" / "dashboards" / f"{page.uid}.json": json.dumps(dashboard(page), indent=1) + "\n"
        for page in PAGES
    }
    return written | {DEPLOY / "prometheus" / "consoles" / "ackgate.html": console(OVERVIEW)}


if __name__ == "__main__":
    for file, text in files().items():
        file.write_text(text)
        print(f"written: {file.relative_to(DEPLOY.parent)}")
