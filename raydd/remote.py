"""Whole files in a folder at a URI: an object store shows a file once it is complete, and knows neither locks nor renaming.

Errors of the storage are `ResourceError`s that name the place; what is absent is None or left out.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from pyarrow import fs

from raydd.errors import ResourceError
from raydd.files import atomic_write_bytes
from raydd.places import first_line, opened, redacted


class Remote:
    """The files below a URI by their names there, with slashes."""

    def __init__(self, uri: str):
        """Raises `ResourceError` for a URI that cannot be opened; nothing is asked of the storage yet."""
        self.uri = uri
        self._fs, self._path = opened(uri)

    def read(self, name: str) -> bytes | None:
        """The content of a file, None where there is none."""
        with self._reported(name, "read"):
            try:
                with self._fs.open_input_file(self._at(name)) as file:
                    return file.read()
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Put a file, replacing what is there."""
        with self._reported(name, f"written ({len(data):,} bytes)"):
            if isinstance(self._fs, fs.LocalFileSystem):  # which shows a file from its first byte on, unlike an object store
                atomic_write_bytes(self._at(name), data)
                return
            with self._fs.open_output_stream(self._at(name)) as file:
                file.write(data)

    def copy(self, name: str, to: str) -> None:
        """Have the storage itself copy a file."""
        with self._reported(to, "written"):
            self._fs.copy_file(self._at(name), self._at(to))

    def names(self) -> list[str]:
        """Every file below the folder, in order; [] where there is no folder."""
        with self._reported("", "listed"):
            try:
                found = self._fs.get_file_info(fs.FileSelector(self._path, allow_not_found=True, recursive=True))
            except FileNotFoundError:
                return []
        return sorted(info.path.removeprefix(self._path).lstrip("/") for info in found if info.type == fs.FileType.File)

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        with self._reported(name, "removed"):
            try:
                self._fs.delete_file(self._at(name))
            except FileNotFoundError:
                return

    def _at(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}"

    @contextmanager
    def _reported(self, name: str, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            place = redacted(f"{self.uri.partition('?')[0].rstrip('/')}/{name}")
            told = redacted(first_line(error))
            raise ResourceError(
                f"{place} cannot be {what}: {told}. Check the address, the network and the rights to write there."
            ) from error
