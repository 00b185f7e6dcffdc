"""Becoming another user."""

from __future__ import annotations

import errno
import os

from bindlock.proof.errors import NotPossible

#: The uid and gid that own nothing: "nobody".
NOBODY = 65534


def become_nobody() -> None:
    """Become a user who owns nothing, for good. Raises NotPossible for a root who may not, as in many containers."""
    try:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EINVAL):  # no privilege; no such user in this user namespace
            raise
        raise NotPossible(f"root cannot become another user here ({error})") from None
