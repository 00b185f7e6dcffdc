"""What bindlock is made of, by itself."""

import errno
import socket

from bindlock.proof.kind import Kind


class Abstract(Kind):
    r"""Abstract socket, bare.

    The well-known snippet: ``s = socket.socket(socket.AF_UNIX, …); s.bind("\0" + name)``.
    """

    rule = (
        "The kernel takes an abstract address back when the last reference to the open socket goes "
        "(unix_release_sock, net/unix/af_unix.c)."
    )

    def acquire(self) -> bool:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.bind("\0" + self.site.name)
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
