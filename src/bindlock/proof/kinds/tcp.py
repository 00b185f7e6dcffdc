"""A port as a lock."""

import errno
import socket

from bindlock.proof.kind import Kind


class Tcp(Kind):
    """TCP port.

    Bind and listen on a port of loopback.
    """

    rule = (
        "A port belongs to one listening socket, and goes with the last reference to it; but while a connection of it "
        "is in TIME_WAIT (60 s), bind(2) refuses it without SO_REUSEADDR (inet_csk_get_port). There is one "
        "table of ports per network namespace."
    )
    option: int | None = None

    def acquire(self) -> bool:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            if self.option is not None:
                self.socket.setsockopt(socket.SOL_SOCKET, self.option, 1)
            self.socket.bind(self.site.address)
            self.socket.listen()
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
