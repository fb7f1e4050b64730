"""The fuzz target: both implementations of the codec on the same bytes, cut anywhere, until they differ or crash.

`python -m tests.codec.fuzz [examples]`, or `make fuzz`. With atheris installed (a package of its own, not
one of the requirements) libFuzzer steers by what the Python implementation does, and takes its own flags instead of a
number, such as -max_total_time=600. Without it Hypothesis runs the given number of examples of each kind.
"""

import inspect
import sys
from collections.abc import Callable
from itertools import accumulate

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.codec import ParseTable
from tests.codec.agreement import cut, joins_agree, replies_agree, requests_agree, splits_agree
from tests.codec.implementations import implementation
from tests.codec.streams import (
    REPLY_TOKENS,
    REQUEST_TOKENS,
    TABLES,
    cuts,
    multi_key_requests,
    replies,
    reply_streams,
    request_streams,
    spoiled_requests,
    steps,
)

EXAMPLES = 20_000
ONE, OTHER = implementation("python"), implementation("cython")


def check_requests(stream: bytes, cuts: list[int], table: ParseTable, aside: bool) -> None:
    requests_agree(ONE, OTHER, cut(stream, cuts), table, aside=aside)


def check_replies(stream: bytes, cuts: list[int], aside: bool) -> None:
    replies_agree(ONE, OTHER, cut(stream, cuts), aside=aside)


def check_split(raw: bytes, step: int) -> None:
    splits_agree(ONE, OTHER, raw, step)


def check_join(frames: list[bytes]) -> None:
    joins_agree(ONE, OTHER, frames)


def check_bytes(data: bytes) -> None:
    """One input of libFuzzer. Byte 0: what to check, whether to set aside, and how many cuts follow as distances of
    one byte each; of the rest, bytes below 0x80 stand for themselves and the others for tokens, so that mutations
    make RESP. What is to be split or joined is cut too: into the replies of a join.
    """
    if not data:
        return
    kind, count, aside = data[0] % 7, data[0] // 7 % 8, data[0] >= 200
    tokens = REPLY_TOKENS if kind in (4, 6) else REQUEST_TOKENS
    stream = b"".join(tokens[byte % len(tokens)] if byte >= 0x80 else b"%c" % byte for byte in data[1 + count :])
    edges = list(accumulate(data[1 : 1 + count]))
    if kind == 4:
        check_replies(stream, edges, aside)
    elif kind == 5:
        check_split(stream, 1 + count % 3)
    elif kind == 6:
        check_join(list(cut(stream, edges)))
    else:
        check_requests(stream, edges, TABLES[kind], aside)


def fuzz_with_hypothesis(examples: int) -> None:
    """Raises what a check raises, with the smallest input found."""
    long = settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    runs: list[Callable[[], None]] = [
        long(given(request_streams, cuts, st.sampled_from(TABLES), st.booleans())(check_requests)),
        long(given(reply_streams, cuts, st.booleans())(check_replies)),
        long(given(multi_key_requests | spoiled_requests, steps)(check_split)),
        long(given(replies)(check_join)),
        long(given(st.binary(max_size=60))(check_bytes)),
    ]
    for run in runs:
        run()
    print(f"{len(runs)} x {examples} examples: no difference")


def main(arguments: list[str]) -> None:
    try:
        import atheris
    except ImportError:
        fuzz_with_hypothesis(int(arguments[1]) if len(arguments) > 1 else EXAMPLES)
        return
    from proxy.codec import _python, request

    for module in (_python, request):
        for _, function in inspect.getmembers(module, inspect.isfunction):
            atheris.instrument_func(function)
    atheris.Setup(arguments, check_bytes)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
