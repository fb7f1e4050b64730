"""``ackgate`` where host names are found in the file ``$HOSTS``, looked at each time, and nowhere else.

For one that is not there one waits long, as on a container engine's network that leads nowhere else.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from proxy.cli import main

LONG = 10.0
_find = socket.getaddrinfo


def _find_in_file(
    host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
) -> Any:
    name = host.decode() if isinstance(host, bytes) else host
    pairs = [line.split() for line in Path(os.environ["HOSTS"]).read_text().splitlines()]
    address = next((address for address, known in pairs if known == name), None)
    numeric = flags & socket.AI_NUMERICHOST or name is None or name.replace(".", "").isdigit()
    if address is None and not numeric:
        time.sleep(LONG)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    return _find(host if numeric else address, port, family, type, proto, flags)


if __name__ == "__main__":
    socket.getaddrinfo = _find_in_file
    main()
