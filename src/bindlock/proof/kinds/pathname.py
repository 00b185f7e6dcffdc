"""A Unix socket in a directory, as daemons have it."""

import contextlib
import errno
import os
import socket

from bindlock.proof.kind import Kind


class Pathname(Kind):
    """Unix socket with a path.

    Bind; when the path is taken, connect, and when nobody answers, unlink it and bind again.
    """

    rule = (
        "The path of a Unix socket stays in the directory after the socket is gone: unix(7) leaves the unlink to the "
        "program. Who finds it taken can only guess by a connect, and between the guess and the unlink another may "
        "bind."
    )

    def acquire(self) -> bool:
        path = str(self.site.path)
        while True:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self.socket.bind(path)
                if self.site.shared:
                    os.chmod(path, 0o666)  # noqa: S103 - to connect takes the right to write
                self.socket.listen()
            except OSError as error:
                self.socket.close()
                if error.errno != errno.EADDRINUSE:
                    raise
                if self._answers(path):
                    return False
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            else:
                return True

    def release(self) -> None:
        os.unlink(self.site.path)
        self.socket.close()

    def fileno(self) -> int:
        return self.socket.fileno()

    @staticmethod
    def _answers(path: str) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.setblocking(False)
            try:
                caller.connect(path)
            except (ConnectionRefusedError, FileNotFoundError):
                return False
            except BlockingIOError:
                return True  # its queue is full
        return True
