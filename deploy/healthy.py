"""The container's health: whether every slot has a primary that answers, by the proxy's own word (/readyz).

Run every two seconds for ever, so it imports nothing but the socket module, and no interpreter start-up files.
"""

import socket
import sys

ADMIN = ("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 9121)
SECONDS = 2.0

try:
    with socket.create_connection(ADMIN, SECONDS) as connection:
        connection.settimeout(SECONDS)
        connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
except OSError as error:
    sys.exit(f"the admin port of the proxy does not answer: {error}")
sys.exit(0 if answer.split(b" ", 2)[1:2] == [b"200"] else answer.rpartition(b"\r\n\r\n")[2].decode("utf-8", "replace"))
