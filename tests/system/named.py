"""``ackgate`` where host names are found in the file ``$HOSTS``, looked at each time, and nowhere else."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from proxy.cli import main

_find = socket.getaddrinfo


def _find_in_file(host: Any, *arguments: Any, **more: Any) -> Any:
    name = host.decode() if isinstance(host, bytes) else host
    pairs = [line.split() for line in Path(os.environ["HOSTS"]).read_text().splitlines()]
    address = next((address for address, known in pairs if known == name), None)
    if address is None and name is not None and not name.replace(".", "").isdigit():
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return _find(address or host, *arguments, **more)


if __name__ == "__main__":
    socket.getaddrinfo = _find_in_file
    main()
