"""The port that clients come to: had, or said why it cannot be."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from proxy.control.siblings import Place
from proxy.errors import UserError
from proxy.settings import ListenSettings


def bound(listen: ListenSettings, bind: Callable[[socket.socket, Any], None]) -> socket.socket:
    """A TCP socket that ``bind(socket, address)`` has bound to the address clients come to.  Raises ``UserError``."""
    host, port = listen.host, listen.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            bind(listener, address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; "
            "stop what uses it or choose another port (listen.port)"
        ) from None
    return listener


def listening(listen: ListenSettings, place: Place) -> socket.socket:
    """The port, where clients are listened for unless that is to come later.  Raises ``UserError``."""

    def bind(listener: socket.socket, address: Any) -> None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not place.alone:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.setblocking(False)
        listener.bind(address)
        if not place.late:
            listener.listen(listen.backlog)

    return bound(listen, bind)
