"""An object store for tests: gs:// on a local folder, with the manners of the real one.

There are no folders, only objects whose names have slashes. An object appears when its file is closed. Nothing can be appended
to, and a folder is renamed object by object. `die_at` makes the process meet its end before that change to the store.
"""

import io
import os
import shutil
from pathlib import Path

import fsspec


class Died(BaseException):
    """Stands for a kill: nothing in the program catches it."""


class FakeStore(fsspec.AbstractFileSystem):
    """As much of a file system as etils asks for."""

    protocol = ("gs", "gcs")
    cachable = False
    root = Path(os.environ.get("FAKE_STORE", "/nowhere"))
    changes = 0
    die_at = None

    @classmethod
    def change(cls):
        """Count a change; the last one isn't made."""
        if cls.die_at is not None and cls.changes >= cls.die_at:
            raise Died
        cls.changes += 1

    def _file(self, path):
        return self.root / self._strip_protocol(path).strip("/")

    def ls(self, path, detail=True, **_):
        """Objects and what look like folders."""
        folder = self._file(path)
        if folder.is_file():
            found = [folder]
        elif folder.is_dir() and any(p.is_file() for p in folder.rglob("*")):
            found = [p for p in folder.iterdir() if p.is_file() or any(q.is_file() for q in p.rglob("*"))]
        else:
            raise FileNotFoundError(path)
        kinds = {True: "file", False: "directory"}
        infos = [{"name": str(p.relative_to(self.root)), "size": p.stat().st_size, "type": kinds[p.is_file()]} for p in found]
        return infos if detail else [info["name"] for info in infos]

    def mkdir(self, path, create_parents=True, **_):
        """There are no folders."""

    def makedirs(self, path, exist_ok=False):
        """There are no folders."""

    def _rm(self, path):
        if self._file(path).is_file():
            self.change()
            self._file(path).unlink()

    def rmdir(self, path):
        """There are no folders."""

    def cp_file(self, path1, path2, **_):
        """Copy one object."""
        self.change()
        self._file(path2).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._file(path1), self._file(path2))

    def _open(self, path, mode="rb", **_):
        if mode == "rb":
            return self._file(path).open("rb")
        assert mode == "wb", f"an object store doesn't open with {mode!r}"
        return Upload(self, self._file(path))


class Upload(io.BytesIO):
    """A file that becomes an object when it is closed."""

    def __init__(self, store, target):
        super().__init__()
        self.store, self.target = store, target

    def close(self):
        """Make it an object."""
        if not self.closed:
            content = self.getvalue()
            super().close()
            self.store.change()
            self.target.parent.mkdir(parents=True, exist_ok=True)
            part = self.target.with_name(f"{self.target.name}.part")
            part.write_bytes(content)
            part.rename(self.target)


def register():
    """From now on gs:// is the fake one."""
    from etils.epath.backend import fsspec_backend

    for name in ("gs", "gcs"):
        fsspec.register_implementation(name, FakeStore, clobber=True)
    fsspec_backend._get_filesystem.cache_clear()


if __name__ == "__main__":  # python tests/fake_store.py PROGRAM ARGUMENTS…
    import runpy
    import sys

    register()
    sys.argv = sys.argv[1:]
    sys.path.insert(0, os.getcwd())
    runpy.run_path(sys.argv[0], run_name="__main__")
