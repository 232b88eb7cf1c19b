"""On the path of a child process: a connection to any other machine is an error in it.

Python imports a module of this name by itself when it starts.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

_connect, _look_up = socket.socket.connect, socket.getaddrinfo


def _is_here(host: Any) -> bool:
    if host in (None, "", "localhost", b"localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse(host: Any) -> None:
    """Raise unless a host is this machine."""
    if not _is_here(host):
        raise RuntimeError(f"a test without a network: {host!r} was to be reached")


def _only_here(self: socket.socket, address: Any) -> Any:
    if self.family in (socket.AF_INET, socket.AF_INET6):
        refuse(address[0])
    return _connect(self, address)


def _looked_up(host: Any, *arguments: Any, **options: Any) -> Any:
    refuse(host)
    return _look_up(host, *arguments, **options)


socket.socket.connect = _only_here  # type: ignore[assignment, method-assign]
socket.getaddrinfo = _looked_up
