"""sock_diag(7): what the kernel knows of every Unix socket of this network namespace, without touching any of them.

The kernel's rules (net/unix/diag.c and net/netlink/af_netlink.c, Linux 6.12 and 6.18):

* No privilege is needed. A dump can be limited by state: LISTEN (10) and CLOSE (7: bound only, and every datagram
  socket). Connections accepted at a listener carry its name, too, but are ESTABLISHED.
* For a listener, UNIX_DIAG_RQLEN is the queue's length and limit. The length counts connections whose client has gone,
  as long as nobody accepts them. UNIX_DIAG_ICONS lists the clients' inodes in the order of the queue, 0 for the dead.
* An entry must fit the buffer that the kernel made for the answer. Its first is about 8 KiB; later ones are as large as
  the largest receive that succeeded before, up to 32 KiB. An entry that does not fit an empty buffer *ends the dump*.
  So ICONS (4 bytes a client) is never asked for in the dump of all sockets, but for single ones, where "does not fit"
  (more than about 900 clients) is an honest EMSGSIZE; and then in a dump after a large receive.
* `sk_diag_fill` writes the attributes in a fixed order, the name first.
* A dump goes on where it was by counting, so a socket may be left out when others of its hash bucket go meanwhile.
"""

from __future__ import annotations

import errno
from _socket import AF_NETLINK, AF_UNIX, SOCK_CLOEXEC, SOCK_RAW, socket
from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_SHOW_NAME, _SHOW_ICONS, _SHOW_RQLEN, _SHOW_UID = 0x1, 0x8, 0x10, 0x40
_QUEUES = _SHOW_NAME | _SHOW_RQLEN | _SHOW_UID | _SHOW_ICONS
_NAME, _ICONS, _RQLEN, _UID = 0, 3, 4, 7
CLOSE, LISTEN = 7, 10
_BOUND = 1 << CLOSE | 1 << LISTEN

_HEADER = Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_REQUEST = Struct("=IHHIIBBHIIIII")  # nlmsghdr and unix_diag_req
#: unix_diag_msg (family, type, state, pad, inode, cookie) and the header of the first attribute.
_BEGINNING = Struct("=BBBBIIIHH")
_ATTRIBUTE = Struct("=HH")
_PAIR = Struct("=II")
_WORD = Struct("=I")
_ERROR = Struct("=i")
_RECEIVE_BYTES = 256 * 1024


class Entry:
    """One bound abstract socket."""

    __slots__ = ("address", "clients", "cookie", "inode", "kind", "limit", "queued", "state", "uid")

    def __init__(
        self, address: bytes, kind: int, state: int, inode: int, cookie: tuple[int, int],
        queued: int, limit: int, uid: int, clients: tuple[int, ...],
    ) -> None:  # fmt: skip
        self.address = address
        self.kind = kind
        self.state = state
        self.inode = inode
        self.cookie = cookie
        #: Connections in the queue, the dead ones included, and how many the holder asked for.
        self.queued = queued
        self.limit = limit
        #: The uid of the process that made the socket.
        self.uid = uid
        #: Inodes of the queued clients, in order, 0 for dead ones; filled in by `queues`.
        self.clients = clients

    @property
    def key(self) -> tuple[bytes, int]:
        """What the kernel tells names apart by: `bindlock.names.Name.key`."""
        return self.address, self.kind

    @property
    def listening(self) -> bool:
        """Whether waiters can queue."""
        return self.state == LISTEN

    @property
    def roomy(self) -> bool:
        """Whether the queue is under half full, so that looking may take a place in it."""
        return self.listening and self.queued * 2 < self.limit

    @property
    def waiters(self) -> int:
        """Live clients in the queue."""
        return sum(inode != 0 for inode in self.clients)

    @property
    def dead_in_front(self) -> int:
        """How many dead clients stand before the first live one."""
        for place, inode in enumerate(self.clients):
            if inode:
                return place
        return len(self.clients)


class Diag:
    """A netlink socket to ask with; use it in a `with` block.

    Raises OSError where sock_diag(7) cannot be had: EPERM or EAFNOSUPPORT under seccomp, ENOENT without the kernel's
    unix_diag module, EPROTONOSUPPORT without sock_diag itself.
    """

    def __init__(self) -> None:
        self._socket = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
        self._buffer = bytearray(_RECEIVE_BYTES)
        self._sequence = 0

    def __enter__(self) -> Diag:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()

    def bound(self, wanted: Callable[[bytes], object] | None = None) -> list[Entry]:
        """Every bound abstract socket, or those whose address is `wanted`; `clients` left empty."""
        return list(self._ask(_BOUND, _SHOW_NAME | _SHOW_RQLEN | _SHOW_UID, wanted=wanted))

    def all_queues(self, entries: list[Entry]) -> list[Entry]:
        """The same sockets now, `clients` filled in, without those that are gone: for many at the cost of a dump."""
        addresses = frozenset(entry.address for entry in entries)
        found = {entry.cookie: entry for entry in self._ask(_BOUND, _QUEUES, wanted=addresses.__contains__)}
        # One that the dump has left out is gone, or stands behind some stranger's that has ended the dump.
        now = (found.get(entry.cookie) or self.queues(entry) for entry in entries)
        return [entry for entry in now if entry is not None]

    def queues(self, entry: Entry) -> Entry | None:
        """The same socket now, `clients` filled in; None when it is gone."""
        try:
            for found in self._ask(_BOUND, _QUEUES, entry.inode, entry.cookie):
                return found
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            if error.errno != errno.EMSGSIZE:
                raise
        # The question before has been answered, with an error, in a large receive: now entries may be large.
        wanted = frozenset({entry.address}).__contains__
        dump = list(self._ask(_BOUND, _QUEUES, wanted=wanted))  # to its end, or the next gets EBUSY
        same = [found for found in dump if found.inode == entry.inode]
        return same[0] if same else None

    def _ask(
        self,
        states: int,
        show: int,
        inode: int = 0,
        cookie: tuple[int, int] = (0, 0),
        wanted: Callable[[bytes], object] | None = None,
    ) -> Iterator[Entry]:
        self._sequence += 1
        flags = _NLM_F_REQUEST if inode else _NLM_F_REQUEST | _NLM_F_DUMP
        self._socket.send(
            _REQUEST.pack(
                _REQUEST.size, _SOCK_DIAG_BY_FAMILY, flags, self._sequence, 0,
                AF_UNIX, 0, 0, states, inode, show, *cookie,
            )
        )  # fmt: skip
        buffer = self._buffer
        while True:
            received = self._socket.recv_into(buffer)
            start = 0
            while start < received:
                length, kind, _, sequence, _ = _HEADER.unpack_from(buffer, start)
                if sequence == self._sequence:
                    if kind == _NLMSG_DONE:
                        return
                    if kind == _NLMSG_ERROR:
                        (code,) = _ERROR.unpack_from(buffer, start + _HEADER.size)
                        raise OSError(-code, "sock_diag")
                    entry = _parse(buffer, start + _HEADER.size, start + length, wanted)
                    if entry is not None:
                        yield entry
                    if inode:
                        return
                start += (length + 3) & ~3


def _parse(buffer: bytearray, start: int, end: int, wanted: Callable[[bytes], object] | None) -> Entry | None:
    """The entry between `start` and `end`; None for a socket without an abstract name, or with none that is wanted."""
    _, kind, state, _, inode, cookie_low, cookie_high, length, attribute = _BEGINNING.unpack_from(buffer, start)
    start += _BEGINNING.size
    # The name comes first, if there is one; a path name has no leading NUL.
    if attribute != _NAME or length == _ATTRIBUTE.size or buffer[start]:
        return None
    address = bytes(buffer[start : start + length - _ATTRIBUTE.size])
    if wanted is not None and not wanted(address):
        return None
    start += (length - 1) & ~3
    queued = limit = uid = 0
    clients: tuple[int, ...] = ()
    while start < end:
        length, attribute = _ATTRIBUTE.unpack_from(buffer, start)
        if attribute == _RQLEN:
            if state == LISTEN:  # for other states these are bytes to read and to write
                queued, limit = _PAIR.unpack_from(buffer, start + 4)
        elif attribute == _UID:
            (uid,) = _WORD.unpack_from(buffer, start + 4)
        elif attribute == _ICONS:
            clients = tuple(memoryview(buffer)[start + 4 : start + length].cast("I"))
        start += (length + 3) & ~3
    return Entry(address, kind, state, inode, (cookie_low, cookie_high), queued, limit, uid, clients)
