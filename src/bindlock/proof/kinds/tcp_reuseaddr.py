"""A port as a lock, as servers open it."""

import socket

from bindlock.proof.kinds.tcp import Tcp


class TcpReuseaddr(Tcp):
    """TCP port, SO_REUSEADDR.

    As servers do it, so that they can start again at once.
    """

    rule = (
        "With SO_REUSEADDR a port in TIME_WAIT can be bound, one that listens cannot; two may bind it, and then the "
        "second to listen is refused (socket(7); inet_csk_get_port)."
    )
    option = socket.SO_REUSEADDR
