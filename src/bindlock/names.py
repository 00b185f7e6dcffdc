r"""Name, scope, address: what the user writes, who shares it, and the socket address made of both.

================  ========================  =====================================  ====================
written           scope                     address, after the NUL byte            trusted holders
================  ========================  =====================================  ====================
``backup``        ``user`` (the default)    ``bindlock/<euid>/backup``             that uid, and root
``backup``        ``host``                  ``bindlock/host/backup``               any uid
``@any/text``     ``verbatim``              ``any/text``                           any uid
``padded:@text``  ``verbatim``              ``text``, NULs up to 107 bytes         any uid
``datagram:@t``   ``verbatim``              ``t``, bound as SOCK_DGRAM             any uid
================  ========================  =====================================  ====================

The last three exclude, and are excluded by, foreign programs. The kernel compares abstract addresses with their
length (`unix_validate_addr`, then `memcmp`) and their socket type (`unix_abstract_hash`), so the three never exclude
each other: a C program that binds ``sizeof(struct sockaddr_un)`` is met by ``padded:@…`` only, the much-copied
``socket(AF_UNIX, SOCK_DGRAM); bind("\0" + name)`` by ``datagram:@…`` only.

Shared by name means shared by *network namespace*: every abstract address lives in one, whatever the scope.
"""

# The names of `os` and `socket` come from the modules beneath them: `bindlock run` loads this module before anything
# else, and `os` alone would cost it a tenth of its start-up time. (And ``from __future__`` is an import, too.)
from _socket import SOCK_DGRAM, SOCK_STREAM
from posix import environ, geteuid

#: Bytes of an abstract address after its leading NUL: sun_path has 108 (unix(7)).
ROOM = 107
_DIGEST_BYTES = 16
_PADDED = "padded:@"
_DATAGRAM = "datagram:@"
_SEQPACKET = "seqpacket:@"
_VERBATIM = ("@", _PADDED, _DATAGRAM, _SEQPACKET)
#: Kinds of address that belong to other programs' conventions rather than to bindlock.
SCOPES = ("user", "host")


class Name:
    """A name as written, with its scope and the kernel's address for it. Compare by `key`."""

    __slots__ = ("address", "kind", "scope", "text", "trusted")

    def __init__(
        self, text: str, scope: str, address: bytes, kind: int = SOCK_STREAM, trusted: tuple[int, ...] | None = None
    ) -> None:
        self.text = text
        self.scope = scope
        self.address = address
        #: SOCK_STREAM or SOCK_DGRAM: part of the kernel's key for the name.
        self.kind = kind
        #: The uids that may hold it, or None for any.
        self.trusted = trusted

    @property
    def key(self) -> tuple[bytes, int]:
        """What the kernel tells names apart by."""
        return self.address, self.kind

    @property
    def listens(self) -> bool:
        """Whether a holder of ours listens, so that waiters can queue: datagram sockets cannot."""
        return self.kind == SOCK_STREAM

    def trusts(self, uid: int | None) -> bool:
        """Whether a holder with that uid is one the scope expects; one that is not known is no stranger yet."""
        return self.trusted is None or uid is None or uid in self.trusted

    def trusting_all(self) -> "Name":
        """The same name for those to whom any holder is a holder."""
        return Name(self.text, self.scope, self.address, self.kind)

    def __repr__(self) -> str:
        return f"<Name {self.text!r} scope={self.scope} address={self.address!r}>"


def parse(text: str, scope: str = "user") -> Name:
    r"""The `Name` for what a user wrote.

    >>> parse("backup", "host").address
    b'\x00bindlock/host/backup'
    >>> parse("@/test-socket").address
    b'\x00/test-socket'
    >>> len(parse("padded:@/test-socket").address)
    108

    Raises `InvalidArgument`, with the reason, for what cannot be a name: empty, control characters, a trailing
    slash, no UTF-8, five hexadecimal digits alone (the kernel binds such names by itself: unix(7), autobind), or a
    verbatim name that does not fit. Other names of any length fit: a long one ends in a digest of all of it.
    """
    if not isinstance(text, str):
        raise TypeError(f"a name is a str, not {text!r}")
    if scope not in SCOPES:
        raise _invalid(f"unknown scope {scope!r}: it is 'user' or 'host'")
    if text.startswith("@"):
        return Name(text, "verbatim", b"\0" + _verbatim(text, text[1:]))
    if text.startswith(_SEQPACKET):
        raise _invalid(f"{text!r} is no name: a SOCK_SEQPACKET socket is no lock of anybody's")
    if text.startswith(_PADDED):
        tail = _verbatim(text, text[len(_PADDED) :])
        return Name(text, "verbatim", b"\0" + tail.ljust(ROOM, b"\0"))
    if text.startswith(_DATAGRAM):
        return Name(text, "verbatim", b"\0" + _verbatim(text, text[len(_DATAGRAM) :]), SOCK_DGRAM)
    euid = geteuid()
    prefix = f"{_snap_prefix()}bindlock/{'host' if scope == 'host' else euid}/".encode()
    address = b"\0" + _shorten(prefix, _encode(text, text))
    return Name(text, scope, address, trusted=(euid, 0) if scope == "user" else None)


def spell(address: bytes, kind: int = SOCK_STREAM) -> Name:
    r"""The `Name` of a bound abstract address, spelled so that its text (with its scope) means that address again.

    >>> spell(b"\0bindlock/host/backup")
    <Name 'backup' scope=host address=b'\x00bindlock/host/backup'>
    >>> spell(b"\0/test-socket".ljust(108, b"\0")).text
    'padded:@/test-socket'

    A name of another user's scope, or of another program, comes back verbatim. Bytes that no spelling can produce
    are shown with Python's backslash escapes.
    """
    tail = address[1:]
    prefix = f"{_snap_prefix()}bindlock/".encode()
    if kind == SOCK_STREAM and tail.startswith(prefix):
        owner, _, text = tail[len(prefix) :].decode(errors="backslashreplace").partition("/")
        # What would itself be understood as verbatim can be bound, but not be spelled in a scope.
        if text and not text.startswith(_VERBATIM):
            euid = geteuid()
            if owner == str(euid):
                return Name(text, "user", address, trusted=(euid, 0))
            if owner == "host":
                return Name(text, "host", address)
    mark = "@" if kind == SOCK_STREAM else _DATAGRAM if kind == SOCK_DGRAM else _SEQPACKET
    if len(tail) == ROOM and tail.endswith(b"\0") and kind == SOCK_STREAM:
        mark, tail = _PADDED, tail.rstrip(b"\0")
    return Name(mark + tail.decode(errors="backslashreplace"), "verbatim", address, kind)


def is_ours(address: bytes) -> bool:
    """Whether an abstract address is a bindlock one, of whatever scope, user or snap."""
    tail = address[1:]
    if tail.startswith(b"snap."):
        tail = tail[tail.find(b".bindlock/") + 1 :]
    return tail.startswith(b"bindlock/")


def _encode(text: str, rest: str) -> bytes:
    if not rest:
        raise _invalid(f"{text!r} is no name: it is empty")
    if not rest.isprintable():
        for character in rest:
            if character < " " or "\x7f" <= character <= "\x9f":
                what = "a NUL" if character == "\0" else "a control character"
                raise _invalid(f"{text!r} is no name: it contains {what} ({character!r})")
    if rest.endswith("/"):
        raise _invalid(f"{text!r} is no name: it ends in a slash")
    try:
        return rest.encode()
    except UnicodeEncodeError as error:
        raise _invalid(f"{text!r} is no name: it cannot be written as UTF-8") from error


def _verbatim(text: str, rest: str) -> bytes:
    tail = _encode(text, rest)
    if len(tail) > ROOM:
        raise _invalid(f"{text[:40]!r}… is no name: a verbatim name has at most {ROOM} bytes, this one {len(tail)}")
    if len(tail) == 5 and all(byte in b"0123456789abcdef" for byte in tail):
        raise _invalid(f"{text!r} is no name: the kernel gives five hexadecimal digits to unnamed sockets")
    return tail


def _shorten(prefix: bytes, tail: bytes) -> bytes:
    """`prefix + tail`, or where that does not fit its readable beginning, a ``~`` and a digest of all of `tail`."""
    if len(prefix) + len(tail) <= ROOM:
        return prefix + tail
    from hashlib import blake2b  # only long names pay for it

    mark = b"~" + blake2b(tail, digest_size=_DIGEST_BYTES).hexdigest().encode()
    room = ROOM - len(prefix) - len(mark)
    if room < 0:
        raise _invalid("the snap's instance name leaves no room for a lock's name")
    return prefix + tail[:room].decode(errors="ignore").encode() + mark


def _snap_prefix() -> str:
    """The only prefix that a snap's confinement allows (``snap.<instance>.``), or nothing outside of snaps."""
    instance = environ.get(b"SNAP_INSTANCE_NAME")
    return f"snap.{instance.decode(errors='replace')}." if instance else ""


def _invalid(message: str) -> Exception:
    from bindlock.errors import InvalidArgument, printable

    return InvalidArgument(printable(message))
