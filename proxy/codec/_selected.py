"""Which implementation of the hot functions is in use: the compiled one where it was built, unless the environment
variable ACKGATE_CODEC is "python".
"""

import os

from proxy.codec._python import frame_replies, join_elements, parse_requests, split_keys, sum_integers

IMPLEMENTATION = "python"
"""The language of the implementation in use, "cython" or "python"."""

if os.environ.get("ACKGATE_CODEC") != "python":
    try:
        from proxy.codec._compiled import frame_replies, join_elements, parse_requests, split_keys, sum_integers

        IMPLEMENTATION = "cython"
    except ImportError:
        pass  # installed without a C compiler: not worth a word at every start, `ackgate --version` tells

__all__ = ["IMPLEMENTATION", "frame_replies", "join_elements", "parse_requests", "split_keys", "sum_integers"]
