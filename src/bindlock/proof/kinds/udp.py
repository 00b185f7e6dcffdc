"""A port as a lock that nobody can connect to."""

import errno
import socket

from bindlock.proof.kind import Kind


class Udp(Kind):
    """UDP port.

    Bound on loopback; nothing is received.
    """

    rule = "A port belongs to one socket, and goes with the last reference to it. One table per network namespace."

    def acquire(self) -> bool:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self.socket.bind(self.site.address)
        except OSError as error:
            self.socket.close()
            if error.errno != errno.EADDRINUSE:
                raise
            return False
        return True

    def release(self) -> None:
        self.socket.close()

    def fileno(self) -> int:
        return self.socket.fileno()
