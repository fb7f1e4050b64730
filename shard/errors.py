"""The one exception a user of this package sees for a mistake or a missing thing of the machine's."""

from __future__ import annotations


class ShardError(Exception):
    """Something a person can put right. ``str(error)`` is one line that says what is wrong and what to do next."""
