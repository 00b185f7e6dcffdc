"""Names, scopes and addresses: what is written, and what the kernel is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import blake2b
from socket import AF_UNIX, SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM, socket

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import bindlock
from bindlock.names import ROOM, Name, is_ours, parse, spell

EUID = os.geteuid()
#: (written, scope asked for): scope, address, kind, trusted.
TABLE = {
    ("backup", "user"): ("user", b"bindlock/%d/backup" % EUID, SOCK_STREAM, (EUID, 0)),
    ("backup", "host"): ("host", b"bindlock/host/backup", SOCK_STREAM, None),
    ("@any/text", "user"): ("verbatim", b"any/text", SOCK_STREAM, None),
    ("@any/text", "host"): ("verbatim", b"any/text", SOCK_STREAM, None),
    ("padded:@text", "user"): ("verbatim", b"text" + bytes(103), SOCK_STREAM, None),
    ("datagram:@t", "user"): ("verbatim", b"t", SOCK_DGRAM, None),
}


@pytest.mark.parametrize(("written", "expected"), TABLE.items(), ids=[f"{text} {scope}" for text, scope in TABLE])
def test_the_table(written: tuple[str, str], expected: tuple[str, bytes, int, tuple[int, ...] | None]) -> None:
    """Each row of the module's table: scope, address, socket type and trusted users."""
    found = parse(*written)
    assert (found.scope, found.address[1:], found.kind, found.trusted) == expected
    assert found.address[:1] == b"\0"
    assert found.text == written[0]
    assert found.key == (found.address, found.kind)
    assert found.listens == (found.kind == SOCK_STREAM)
    for uid in (0, EUID, 12345):
        assert found.trusts(uid) == (expected[3] is None or uid in expected[3])


def test_five_ways_to_write_one_word_are_five_locks(name: str) -> None:
    """No two scopes, and no two kinds of address, exclude each other for one word."""
    short = name[-12:]
    written = [(short, "user"), (short, "host"), ("@" + short, "user"), ("padded:@" + short, "user"),
               ("datagram:@" + short, "user")]  # fmt: skip
    locks = [bindlock.Lock(text, scope=scope, timeout=0) for text, scope in written]
    for lock in locks:
        lock.acquire()
    for text, scope in written:
        assert not bindlock.Lock(text, scope=scope).try_acquire()
    for lock in locks:
        lock.release()


REFUSED = {
    "": "empty",
    "@": "empty",
    "padded:@": "empty",
    "datagram:@": "empty",
    "a\0b": "NUL",
    "@a\0": "NUL",
    "a\nb": "control",
    "\x1b[31m": "control",
    "a\x7f": "control",
    "a\x9b": "control",
    "a/": "slash",
    "/": "slash",
    "@a/": "slash",
    "\ud800": "UTF-8",
    "@a\udc80": "UTF-8",
    "@" + "a" * 108: "107",
    "@" + "ä" * 54: "107",
    "padded:@" + "a" * 108: "107",
    "@00000": "five hexadecimal digits",
    "@abcde": "five hexadecimal digits",
    "datagram:@12345": "five hexadecimal digits",
}


@pytest.mark.parametrize(("text", "reason"), REFUSED.items(), ids=range(len(REFUSED)))
def test_refused_with_the_reason(text: str, reason: str) -> None:
    """What cannot be a name is refused with the reason, in one printable line, before anything is tried."""
    for call in (parse, bindlock.Lock, bindlock.holder, bindlock.wait, bindlock.single_instance):
        with pytest.raises(bindlock.InvalidArgument, match=reason) as caught:
            call(text)
        assert str(caught.value).isprintable()
        assert caught.value.exit_status == 64
        assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "text",
    [
        "abcde",
        "@abcdef",
        "@abcd",
        "@ABCDE",
        "@0000g",
        "@" + "a" * 107,
        "a b",
        "naïve",
        "日本",
        "-",
        "..",
        "~",
        "@@",
        "x" * 10_000,
    ],
)
def test_unusual_but_fine(text: str) -> None:
    """Names that look odd and are none the less names can be locked."""
    with bindlock.Lock(f"{text}", scope="host", timeout=5) as lock:
        assert lock.held


def test_room() -> None:
    """A name is kept as it is while it fits into 107 bytes; from the next byte on it ends in a digest of all of it."""
    fits = "n" * (ROOM - len("bindlock/host/"))
    assert parse(fits, "host").address == b"\0bindlock/host/" + fits.encode()
    assert len(parse(fits, "host").address) == 108
    long = parse(fits + "n", "host")
    digest = blake2b((fits + "n").encode(), digest_size=16).hexdigest()
    assert long.address.endswith(f"n~{digest}".encode())
    assert len(long.address) == 108
    assert long.address.startswith(b"\0bindlock/host/nnn")


def test_long_names_differ_by_their_ends() -> None:
    """Names that differ only far behind are different locks, and the same long name is the same lock."""
    one, other = parse("x" * 300 + "1"), parse("x" * 300 + "2")
    assert one.address != other.address
    assert one.address == parse("x" * 300 + "1").address


@pytest.mark.parametrize("letter", ["ä", "日", "🔒"])
@pytest.mark.parametrize("shift", range(4))
def test_cut_between_characters(letter: str, shift: int) -> None:
    """The readable beginning of a long name ends with a whole character."""
    address = parse("a" * shift + letter * 200, "host").address
    readable, _, digest = address[1:].decode().rpartition("~")
    assert set(readable) <= set("bindlock/host/a" + letter)
    assert len(digest) == 32
    assert 108 - len(letter.encode()) < len(address) <= 108


def test_the_digest_does_not_depend_on_the_scope_alone() -> None:
    """One long name in two scopes is two locks."""
    assert parse("x" * 300, "user").address != parse("x" * 300, "host").address


def test_unknown_scope() -> None:
    """A scope that is neither user nor host is refused."""
    for scope in ("", "User", "verbatim", "network"):
        with pytest.raises(bindlock.InvalidArgument, match="unknown scope"):
            parse("x", scope)


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=200)
written = st.one_of(
    texts,
    texts.map("@".__add__),
    texts.map("padded:@".__add__),
    texts.map("datagram:@".__add__),
    st.text(max_size=40),
    st.text("0123456789abcdef@", max_size=7),
)


def parsed(text: str, scope: str) -> Name | None:
    """The name, or None where it is refused."""
    try:
        return parse(text, scope)
    except bindlock.InvalidArgument:
        return None


@settings(deadline=None)
@given(written, st.sampled_from(["user", "host"]))
@example("@" + "a" * 107, "user")
@example("@12345", "user")
@example("padded:@" + "a" * 106, "user")
@example("padded:@" + "a" * 107, "user")
def test_what_is_accepted_fits_and_binds(text: str, scope: str) -> None:
    """Nothing that is accepted is longer than 108 bytes, or refused by the kernel for any reason but being taken."""
    found = parsed(text, scope)
    if found is None:
        return
    assert 2 <= len(found.address) <= 108
    with socket(AF_UNIX, found.kind) as bare:
        try:
            bare.bind(found.address)
        except OSError as error:
            assert error.errno == 98, found  # noqa: PT017 - the same suite may run twice at once
        else:
            shown = bare.getsockname()
            assert (shown if isinstance(shown, bytes) else shown.encode()) == found.address


@settings(deadline=None)
@given(written, st.sampled_from(["user", "host"]))
@example("padded:@" + "a" * 107, "user")
@example("datagram:@abc", "user")
@example("@bindlock/host/x", "user")
@example(f"@bindlock/{EUID}/x", "user")
@example("seqpacket:@x", "user")
def test_spelled_and_parsed_again(text: str, scope: str) -> None:
    """The spelling of an address means that address again."""
    found = parsed(text, scope)
    if found is None:
        return
    shown = spell(found.address, found.kind)
    again = parse(shown.text, shown.scope if shown.scope != "verbatim" else "user")
    assert again.key == found.key
    if found.scope != "verbatim":
        assert is_ours(found.address)
        assert shown.scope == found.scope


@pytest.mark.parametrize(
    ("address", "ours"),
    [
        (b"bindlock/host/x", True),
        (b"bindlock/1000/x", True),
        (b"snap.a_1.bindlock/host/x", True),
        (b"snap.x", False),
        (b"snap.", False),
        (b"other/bindlock/host/x", False),
        (b"bindlockhost", False),
    ],
)
def test_whose_address(address: bytes, ours: bool) -> None:
    """Addresses of bindlock are told from others, whatever scope, user or snap they are of."""
    assert is_ours(b"\0" + address) == ours


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=107), st.sampled_from([SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET]))
@example(b"bindlock/host/", SOCK_STREAM)
@example(b"bindlock/host/x\xff", SOCK_STREAM)
@example(b"bindlock//x", SOCK_STREAM)
@example(b"bindlock/0/", SOCK_STREAM)
@example(b"x", SOCK_SEQPACKET)
@example(b"a" * 107, SOCK_STREAM)
@example(bytes(107), SOCK_STREAM)
@example(b"bindlock/host/a\0b", SOCK_STREAM)
def test_any_address_can_be_spelled(tail: bytes, kind: int) -> None:
    """Whatever a stranger has bound can be shown; where that is a name without escapes, it is that address's name."""
    shown = spell(b"\0" + tail, kind)
    assert shown.address == b"\0" + tail
    found = parsed(shown.text, shown.scope if shown.scope != "verbatim" else "user")
    if found is not None and b"\\" not in shown.text.encode():
        assert found.key == shown.key


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(written, st.sampled_from(["user", "host"])), min_size=2, max_size=8))
def test_different_names_have_different_addresses(pairs: list[tuple[str, str]]) -> None:
    """Names share an address only when they are the same in the same scope, or spell the address out verbatim."""
    seen: dict[tuple[bytes, int], tuple[str, str]] = {}
    for text, scope in pairs:
        found = parsed(text, scope)
        if found is None or "~" in text:
            continue
        this = (found.text, found.scope)
        other = seen.setdefault(found.key, this)
        assert other == this or "verbatim" in (other[1], this[1])


def test_padded_to_the_brim_is_the_same_as_unpadded() -> None:
    """A verbatim name of exactly 107 bytes has nothing to be padded with."""
    assert parse("padded:@" + "a" * 107).key == parse("@" + "a" * 107).key


SNAP = """
import sys
from bindlock.names import is_ours, parse, spell
name = parse(sys.argv[1], sys.argv[2])
shown = spell(name.address)
same = (shown.text, shown.scope) == (name.text, name.scope)
print(name.address[1:].decode(), same, is_ours(name.address), len(name.address))
"""


@pytest.mark.parametrize("scope", ["user", "host"])
def test_under_snap(scope: str) -> None:
    """Under snap an address begins with the only prefix that is allowed there, and fits all the same."""
    owner = "host" if scope == "host" else str(EUID)

    def run(text: str, instance: str = "thing_1") -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", SNAP, text, scope], env={**os.environ, "SNAP_INSTANCE_NAME": instance},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.split()

    assert run("backup")[:3] == [f"snap.thing_1.bindlock/{owner}/backup", "True", "True"]
    assert run("backup", "")[:3] == [f"bindlock/{owner}/backup", "True", "True"]
    address, _, ours, length = run("b" * 200)
    assert address.startswith(f"snap.thing_1.bindlock/{owner}/bbb")
    assert "~" in address
    assert (ours, length) == ("True", "108")


def test_a_snap_without_room() -> None:
    """An instance name that leaves no room for a digest is an error, not a cut digest."""
    done = subprocess.run(
        [sys.executable, "-c", "import bindlock; bindlock.Lock('x' * 200)"],
        env={**os.environ, "SNAP_INSTANCE_NAME": "s" * 80}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "InvalidArgument: the snap's instance name leaves no room" in done.stderr


def test_the_address_follows_the_effective_user(name: str) -> None:
    """The scope user is that of the effective uid, when the Lock is made."""
    assert parse(name).address == f"\0bindlock/{os.geteuid()}/{name}".encode()


@pytest.mark.parametrize("text", ["@/tmp/x", "padded:@x", "datagram:@x", "seqpacket:@x"])
def test_a_scoped_address_is_not_spelled_as_another(text: str) -> None:
    """Whoever binds a verbatim spelling within a scope's prefix does not have it shown as that other name."""
    address = b"\0bindlock/host/" + text.encode()
    name = spell(address)
    assert name.scope == "verbatim"
    assert parse(name.text, "host").address == address


def test_seqpacket_is_no_lock() -> None:
    """The spelling that shows a SOCK_SEQPACKET socket is refused rather than taken for a name in a scope."""
    with pytest.raises(bindlock.InvalidArgument, match="SEQPACKET"):
        parse("seqpacket:@x")
