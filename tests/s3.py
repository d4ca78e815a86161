"""An S3-compatible server on this machine, that can be stopped and started again with what it holds."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from moto.server import ThreadedMotoServer
from pyarrow import fs

BUCKET = "bucket"


class Server:
    """A running server with one empty bucket, and the variables by which Arrow, Tune and boto3 find it."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self._host, self._port = self._server.get_host_and_port()
        self.variables = {
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "hushhushhush",
            "AWS_ENDPOINT_URL": f"http://{self._host}:{self._port}",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def stop(self) -> None:
        """Go away: connections are refused from now on. What is held stays in this process."""
        self._server.stop()

    def start(self) -> None:
        """Come back at the same address."""
        self._server = ThreadedMotoServer(ip_address=self._host, port=self._port, verbose=False)
        self._server.start()


@contextmanager
def server() -> Iterator[Server]:
    """A server, and this process's environment pointing at it."""
    found = Server()
    before = {name: os.environ.get(name) for name in found.variables}
    os.environ.update(found.variables)
    try:
        fs.FileSystem.from_uri(f"s3://{BUCKET}?allow_bucket_creation=true")[0].create_dir(BUCKET)
        yield found
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        found.stop()


def names(folder: str) -> list[str]:
    """Every object below a folder of the bucket, by its name there."""
    listing = _bucket().get_file_info(fs.FileSelector(f"{BUCKET}/{folder}", allow_not_found=True, recursive=True))
    return sorted(info.path.removeprefix(f"{BUCKET}/{folder}/") for info in listing if info.type == fs.FileType.File)


def read(name: str) -> bytes:
    """The content of an object of the bucket."""
    with _bucket().open_input_file(f"{BUCKET}/{name}") as file:
        return file.read()


def write(name: str, data: bytes) -> None:
    """Put an object into the bucket."""
    with _bucket().open_output_stream(f"{BUCKET}/{name}") as file:
        file.write(data)


def remove(name: str) -> None:
    """Delete an object of the bucket."""
    _bucket().delete_file(f"{BUCKET}/{name}")


def _bucket() -> fs.FileSystem:
    return fs.FileSystem.from_uri(f"s3://{BUCKET}")[0]
