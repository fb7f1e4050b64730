"""The base of every error that is the user's to mend."""

from __future__ import annotations


class UserError(Exception):
    """Something a person can put right: ``str()`` says in one clear line what is wrong and what to do next.

    The command line prints it as it is and exits with 1; anything else that gets there is a defect and shows its
    traceback. ``shard.errors.ShardError`` is its twin in the package that may not import this one.
    """
