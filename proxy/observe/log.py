"""The log: structured events on standard error, one a line.

What lives here: how events look. What may not: events. Rooms take a structlog logger and name their event and its
fields; none of those is a key, a value or a password.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from proxy.settings import LogSettings


def configure_log(settings: LogSettings) -> Any:
    """Sets structlog up for this process and returns the root logger."""
    renderer: Any = structlog.processors.JSONRenderer()
    if settings.format == "console":
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[settings.level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    return structlog.get_logger()
