"""The filters of CLIENT LIST and CLIENT KILL: read as the engine reads them, and held against sessions.

What lives here: syntax, error texts and matching.  What may not: closing anybody (control), or how a client is shown
(``sessions.clients``, whose flags are asked for).

Source: networking.c of Valkey 9.1 (``parseClientFilters``, ``clientMatchesFilter``), found out by experiment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from proxy.routing.key_specs import strict_integer

SYNTAX = "ERR syntax error"
KNOWN_FLAGS = frozenset(b"bcdeirtuxABEIMNOPRSTU")
KNOWN_CAPABILITIES = frozenset(b"r")
KINDS = {
    b"normal": b"normal",
    b"pubsub": b"pubsub",
    b"replica": b"replica",
    b"slave": b"replica",
    b"primary": b"primary",
    b"master": b"primary",
}


class BadFilter(Exception):
    """The message is the error's text."""


class Facts(NamedTuple):
    """What filters look at, of one session."""

    id: int
    address: bytes
    local_address: bytes
    name: bytes
    flags: frozenset[int]
    capabilities: frozenset[int]
    database: int
    user: bytes
    kind: bytes
    age: int
    idle: int
    lib_name: bytes
    lib_ver: bytes

    @property
    def ip(self) -> bytes:
        return self.address.rpartition(b":")[0]


Test = Callable[[Facts], bool]


class Filters:
    """What a CLIENT LIST or KILL asks for."""

    def __init__(self) -> None:
        self.skip_me: bool | None = None
        self.tests: dict[bytes, Test] = {}
        """By the option's name: the last of a kind counts, but identifiers are gathered."""
        self.ids: dict[bytes, set[int]] = {}

    def match(self, facts: Facts, me: int, skip_me: bool) -> bool:
        """``me``: the identifier of who asks; ``skip_me``: whether it is left out where SKIPME was not given."""
        if facts.id == me and (skip_me if self.skip_me is None else self.skip_me):
            return False
        return all(test(facts) for test in self.tests.values())


def parse(words: Sequence[bytes], databases: int, is_user: Callable[[bytes], bool]) -> Filters:
    """Read options and their values.  Raises ``BadFilter``.

    ``databases``: how many there are; ``is_user``: whether there is a user of this name.
    """
    filters = Filters()
    at = 0
    while at < len(words):
        option = words[at].lower()
        if at + 1 == len(words):
            raise BadFilter(SYNTAX)
        if option in (b"id", b"not-id"):
            at = _identifiers(filters, option, words, at + 1)
            continue
        value = words[at + 1]
        if option == b"skipme":
            filters.skip_me = _yes_or_no(value)
        else:
            _option(filters, option, value, databases, is_user)
        at += 2
    return filters


def _identifiers(filters: Filters, option: bytes, words: Sequence[bytes], at: int) -> int:
    """Take the integers that follow, of which there may be none; where the next option begins is returned."""
    found = filters.ids.setdefault(option, set())
    while at < len(words) and (number := strict_integer(words[at])) is not None:
        if number < 1:
            raise BadFilter("ERR client-id should be greater than 0")
        found.add(number)
        at += 1
    wanted = option == b"id"
    filters.tests[option] = lambda facts: (facts.id in found) is wanted
    return at


def _yes_or_no(value: bytes) -> bool:
    word = value.lower()
    if word not in (b"yes", b"no"):
        raise BadFilter(SYNTAX)
    return word == b"yes"


def _option(
    filters: Filters, option: bytes, value: bytes, databases: int, is_user: Callable[[bytes], bool]
) -> None:
    name = option.removeprefix(b"not-")
    negative = name != option
    test: Test | None = None
    if name in _EXACT:
        test = _exact(_EXACT[name], value)
    elif name == b"user":
        if not is_user(value):
            raise BadFilter(f"ERR No such user '{value.decode('utf-8', 'surrogateescape')}'")
        test = _exact(lambda facts: facts.user, value)
    elif name == b"type":
        test = _kind(value)
    elif name in (b"flags", b"capa"):
        test = _letters(name, value, negative)
    elif name == b"db":
        test = _database(value, databases, "NOT-DB" if negative else "DB")
    elif option == b"maxage":
        test = _at_least(value, "maxage", lambda facts: facts.age)
    elif option == b"idle":
        test = _at_least(value, "idle", lambda facts: facts.idle)
    if test is None:
        raise BadFilter(SYNTAX)
    positive = test
    filters.tests[option] = (lambda facts: not positive(facts)) if negative else positive


_EXACT: dict[bytes, Callable[[Facts], bytes]] = {
    b"addr": lambda facts: facts.address,
    b"laddr": lambda facts: facts.local_address,
    b"ip": lambda facts: facts.ip,
    b"name": lambda facts: facts.name,
    b"lib-name": lambda facts: facts.lib_name,
    b"lib-ver": lambda facts: facts.lib_ver,
}


def _exact(of: Callable[[Facts], bytes], value: bytes) -> Test:
    return lambda facts: bool(of(facts)) and of(facts) == value


def _kind(value: bytes) -> Test:
    kind = KINDS.get(value.lower())
    if kind is None:
        raise BadFilter(f"ERR Unknown client type '{value.decode('utf-8', 'surrogateescape')}'")
    return lambda facts: facts.kind == kind


def _letters(name: bytes, value: bytes, negative: bool) -> Test:
    """All of these flags, or capabilities."""
    letters = frozenset(value)
    if not letters <= (KNOWN_FLAGS if name == b"flags" else KNOWN_CAPABILITIES):
        what = "flags" if name == b"flags" else "capa"
        where = f"NOT-{what.upper()}" if negative else "provided"
        text = value.decode("utf-8", "surrogateescape")
        raise BadFilter(f"ERR Unknown {what} found in the {where} filter: {text}")
    if name == b"flags":
        return lambda facts: letters <= facts.flags
    return lambda facts: letters <= facts.capabilities


def _database(value: bytes, databases: int, name: str) -> Test:
    number = strict_integer(value)
    if number is None:
        raise BadFilter(f"ERR {name} is not an integer or out of range")
    if not 0 <= number < databases:
        raise BadFilter(f"ERR {name} number should be between 0 and {databases - 1}")
    return lambda facts: facts.database == number


def _at_least(value: bytes, name: str, of: Callable[[Facts], int]) -> Test:
    seconds = strict_integer(value)
    if seconds is None:
        raise BadFilter(f"ERR {name} is not an integer or out of range")
    if seconds < 1:
        raise BadFilter(f"ERR {name} should be greater than 0")
    return lambda facts: of(facts) >= seconds
