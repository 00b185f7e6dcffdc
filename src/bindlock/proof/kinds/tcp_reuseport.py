"""A port as a lock, as servers with several processes open it."""

import socket

from bindlock.proof.kinds.tcp import Tcp


class TcpReuseport(Tcp):
    """TCP port, SO_REUSEPORT.

    As servers with several processes do it.
    """

    rule = "With SO_REUSEPORT all processes of a user can have the port at once: that is what it is for (socket(7))."
    option = socket.SO_REUSEPORT
