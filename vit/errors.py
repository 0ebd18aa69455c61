"""Errors that a user can act on, and the exit codes of every command."""

import contextlib
import errno
import sys
from collections.abc import Iterator

BUG, USER, STOPPED = 1, 2, 75  # 75 is EX_TEMPFAIL: rerun the same command to go on

# What a user can do about an error of the operating system; any other is a bug.
MENDED_BY = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room there, or give another place"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "mend its permissions, or give another place"),
    errno.EISDIR: "give the path of a file, this is a folder",
    errno.EEXIST: "give another place, there is a file of this name",
    errno.ENOTDIR: "give another path, a part of this one is a file",
}


class UserError(ValueError):
    """Something the user can put right, told on three lines: what, where, and what to do.

    The programs print it without a traceback and exit with `code`; from Python it is a `ValueError`.
    """

    def __init__(self, what: str, where: str, fix: str, code: int = USER):
        self.code = code
        # A message quoted from a library may span lines; ours never does.
        self.what, self.where, self.fix = (" ".join(part.split()) for part in (what, where, fix))
        super().__init__(f"error: {self.what}\n   at: {self.where}\n  fix: {self.fix}")


class Stopped(Exception):
    """A signal asked the program to stop; everything needed to go on is saved."""


@contextlib.contextmanager
def told_to_the_user() -> Iterator[None]:
    """Turn `UserError` and `Stopped` into a short message and an exit code; let bugs keep their traceback."""
    try:
        yield
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(error.code)
    except OSError as error:
        if error.errno not in MENDED_BY:
            raise
        what, where = f"this can't be read or written: {error.strerror}", str(error.filename or "the disk")
        print(UserError(what, where, MENDED_BY[error.errno]), file=sys.stderr, flush=True)
        sys.exit(USER)
    except Stopped as stopped:
        print(stopped, file=sys.stderr, flush=True)
        sys.exit(STOPPED)
