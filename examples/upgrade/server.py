"""A web server that is upgraded while it serves: no request fails, and its lock is never free.

python server.py 8080 &
kill -HUP $!    # starts the program anew, as it is now; the new process serves, the old one ends
"""

import os
import selectors
import signal
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import bindlock

NAME = os.environ.get("UPGRADE_LOCK", "upgrade-example")
HERITAGE = "UPGRADE_HERITAGE"  # for the next version: its number, and the listening socket's and a connection's


class Handler(BaseHTTPRequestHandler):
    """Your application."""

    server: "Server"
    timeout = 10  # seconds that a client may be silent

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"version {self.server.version}, process {os.getpid()}\n".encode())

    def log_request(self, *_: object) -> None:
        """Only errors are worth a line."""


class Server(ThreadingHTTPServer):
    """Answers on a socket that listens already. Closing it waits for the requests that have begun."""

    daemon_threads = False
    timeout = 0  # handle_request() never waits: main() does

    def __init__(self, listener: socket.socket, version: int) -> None:
        super().__init__(listener.getsockname(), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener.dup()
        self.version = version


def begin(lock: bindlock.Lock) -> tuple[socket.socket, int]:
    """Have the lock and the port: the listening socket, and which version this is."""
    heritage = os.environ.pop(HERITAGE, None)
    if heritage is None:
        lock.acquire()
        listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=4096)
        print(f"http://127.0.0.1:{listener.getsockname()[1]}/", flush=True)
        return listener, 1
    version, listening, connected = map(int, heritage.split())
    # Here is the place for all that takes time, and may fail: the version before still serves.
    with socket.socket(fileno=connected) as connection:
        connection.send(b"!")
        lock.receive(connection, timeout=60)
    return socket.socket(fileno=listening), version


def start_next(version: int, listener: socket.socket) -> socket.socket:
    """Start this program, as it is now, as that version: our end of a connection to it."""
    ours, theirs = socket.socketpair()
    with theirs:
        inherited = (listener.fileno(), theirs.fileno())
        environment = {**os.environ, HERITAGE: f"{version} {inherited[0]} {inherited[1]}"}
        subprocess.Popen([sys.executable, *sys.orig_argv[1:]], pass_fds=inherited, env=environment)
    return ours


def hand_over(lock: bindlock.Lock, server: Server, connection: socket.socket) -> bool:
    """Give the lock to the next version, which is ready, or gone; whether that worked."""
    server.server_close()  # what has begun ends under our lock; who comes now waits in the listening socket
    with connection:
        try:
            connection.recv(1)
            lock.send(connection)
        except (bindlock.NotHandedOver, ConnectionError) as error:
            print(f"upgrade: still version {server.version}: {error}", file=sys.stderr)
            return False
    return True


def main() -> None:
    """Serve until SIGTERM, or until the next version does."""
    awake, alarm = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(alarm)  # each signal makes `awake` readable, with its number
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    lock = bindlock.Lock(NAME, timeout=0)
    listener, version = begin(lock)
    server = Server(listener, version)
    connection: socket.socket | None = None  # to the next version, while that gets ready
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(awake, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    server.handle_request()
                elif key.fd == awake:
                    if os.read(awake, 1)[0] == signal.SIGTERM:
                        server.server_close()
                        return lock.release()
                    if connection is None:
                        connection = start_next(version + 1, listener)
                        selector.register(connection, selectors.EVENT_READ)
                elif connection is not None:
                    selector.unregister(connection)
                    if hand_over(lock, server, connection):
                        return None
                    connection, server = None, Server(listener, version)


if __name__ == "__main__":
    main()
