"""A folder that may be local or a URI: memory-mapped reading, and writing that leaves a whole file or none.

Local folders use a lock file, a temporary name, fsync and a rename, so that several processes may write at once and a killed
one leaves nothing but a temporary file, which the next writer removes. Object stores show an object only once it is complete.
"""

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from raydd.errors import ResourceError
from raydd.files import atomic_write_bytes


class Folder:
    """Files by name in one folder. `location` is what the user wrote: a path, or a URI such as `s3://bucket/experts`."""

    def __init__(self, location: str, filesystem: fs.FileSystem | None = None):
        """`filesystem` overrides what the location says; `location` is then a path in it. Raises `ResourceError` for a bad URI."""
        self.location = location
        if filesystem is not None:
            self._fs, self._path = filesystem, location
        elif "://" in location:
            try:
                self._fs, self._path = fs.FileSystem.from_uri(location)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
                raise ResourceError(
                    f"{location} cannot be opened: {error}. Give a local path, or a URI such as s3://BUCKET/PATH."
                ) from error
        else:
            self._fs, self._path = fs.LocalFileSystem(), str(Path(location).expanduser().absolute())

    @property
    def local(self) -> Path | None:
        """The folder's path on this machine's file system; None for an object store."""
        return Path(self._path) if isinstance(self._fs, fs.LocalFileSystem) else None

    def child(self, name: str) -> "Folder":
        """The folder `name` inside this one."""
        return Folder(f"{self._path.rstrip('/')}/{name}", self._fs)

    def place(self, name: str) -> str:
        """The full path of a file, for messages."""
        return f"{self._path}/{name}"

    def names(self) -> list[str]:
        """File names in order; none where the folder does not exist. Temporary and hidden files are left out."""
        with self._reported(f"{self._path} cannot be listed"):
            listing = self._fs.get_file_info(fs.FileSelector(self._path, allow_not_found=True))
        return sorted(info.base_name for info in listing if info.type == fs.FileType.File and not info.base_name.startswith("."))

    def source(self, name: str) -> pa.NativeFile:
        """A file open for reading: memory-mapped when local. Raises `FileNotFoundError`."""
        with self._reported(f"{self.place(name)} cannot be read"):
            return pa.memory_map(self.place(name)) if self.local else self._fs.open_input_file(self.place(name))

    @contextmanager
    def _reported(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ResourceError(f"{what}: {error.strerror or error}. Check the folder, or give another with --store.") from error

    def free_bytes(self) -> int | None:
        """Bytes free where the folder is or will be; None for an object store."""
        if self.local is None:
            return None
        present = next(path for path in (self.local, *self.local.parents) if path.exists())
        return shutil.disk_usage(present).free

    def write(self, name: str, data: pa.Buffer, unless: Callable[[], bool] = lambda: False) -> None:
        """Write a whole file, replacing an older one; nothing is written when `unless()`, asked under the lock, says so.

        Raises `ResourceError` naming the path when the disk is full or the folder cannot be written.
        """
        with self._reported(f"{self.place(name)} ({data.size:,} bytes) cannot be written"):
            if self.local is None:
                self._upload(name, data, unless)
            else:
                self._replace(self.local, name, data, unless)

    def _upload(self, name: str, data: pa.Buffer, unless: Callable[[], bool]) -> None:
        if unless():
            return
        self._fs.create_dir(self._path, recursive=True)
        with self._fs.open_output_stream(self.place(name)) as sink:
            sink.write(data)

    def _replace(self, folder: Path, name: str, data: pa.Buffer, unless: Callable[[], bool]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / ".lock"):
            for stale in folder.glob(".*.tmp"):  # the lock is ours, so their writers are dead
                stale.unlink()
            if not unless():
                atomic_write_bytes(folder / name, memoryview(data))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
