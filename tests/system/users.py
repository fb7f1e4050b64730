"""The same users behind the proxy and on a plain server, for what is to be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.harness import Up
from tests.system.wire import Wire


@contextmanager
def users_on_both(endpoint: Up, direct: int, users: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """URLs of the proxy and of a plain server that have these users, by their rules; keys are flushed in the end."""
    urls = endpoint.redis_url, f"redis://127.0.0.1:{direct}"
    for url in urls:
        with Wire.to(url) as admin:
            for name, rules in users.items():
                assert admin.call("ACL", "SETUSER", name, "reset", *rules.split()) == b"+OK\r\n"
    yield urls
    for url in urls:
        with Wire.to(url) as admin:
            admin.call("ACL", "DELUSER", *users)
            admin.call("FLUSHALL")
