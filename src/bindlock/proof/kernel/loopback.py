"""The loopback interface of a new network namespace (network_namespaces(7)): there, but down, without addresses."""

from __future__ import annotations

import fcntl
import socket
import struct

from bindlock.proof.errors import NotPossible

_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 0x1
_REQUEST = struct.Struct("16sh22x")  # struct ifreq (netdevice(7))


def bring_up() -> None:
    """Have addresses of 127.0.0.0/8 in the network namespace of this process, which is to be its own.

    Raises NotPossible where a security module forbids even that.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        _, flags = _REQUEST.unpack(fcntl.ioctl(any_socket, _GET_FLAGS, _REQUEST.pack(b"lo", 0)))
        try:
            fcntl.ioctl(any_socket, _SET_FLAGS, _REQUEST.pack(b"lo", flags | _UP))
        except PermissionError as error:
            raise NotPossible(f"loopback cannot be brought up in a network namespace of our own ({error})") from None
