"""Storage at URLs for the tests: in memory, S3 (moto's server), and a web server that answers ranges; loopback only."""

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from training.data import remote


@dataclass
class Storage:
    """
    Attributes:
        url: of the folder.
        folder: whose files are there, once they are uploaded.
        reads: the numbers of bytes that were read, each by one request, unless a server counts them.
        lists: whether a folder can be listed.
    """

    url: str
    folder: Path
    reads: list[int] = field(default_factory=list)
    lists: bool = True

    def upload(self) -> None:
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            self.put(path.relative_to(self.folder).as_posix(), path.read_bytes())

    def put(self, name: str, data: bytes) -> None:
        if self.lists:
            fsspec.filesystem(self.url.partition("://")[0]).pipe_file(f"{self.url}/{name}", data)
        else:
            (self.folder / name).write_bytes(data)

    def spent(self) -> int:
        """The number of bytes that were read since the last call."""
        total = sum(self.reads)
        self.reads.clear()
        return total


@contextmanager
def memory(folder: Path, bucket: str = "bucket") -> Iterator[Storage]:
    storage = Storage(f"memory://{bucket}/shards", folder)
    with _counted(storage):
        storage.upload()
        yield storage
    fsspec.filesystem("memory").rm(f"/{bucket}", recursive=True)


@contextmanager
def s3(folder: Path) -> Iterator[Storage]:
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "key-of-the-tests",
            "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests", "AWS_DEFAULT_REGION": "us-east-1", "NO_PROXY": host,
        }.items():  # fmt: skip
            patch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        system = fsspec.filesystem("s3")
        system.clear_instance_cache()  # one with another endpoint
        fsspec.filesystem("s3").makedirs("bucket", exist_ok=True)  # moto keeps it from test to test
        storage = Storage("s3://bucket/shards", folder)
        with _counted(storage):
            storage.upload()
            yield storage
        fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


@contextmanager
def web(folder: Path, ranges: bool = True) -> Iterator[Storage]:
    pytest.importorskip("aiohttp")
    storage = Storage("", folder, lists=False)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            if self.path.startswith("/flaky") and not storage.flaked:
                storage.flaked = True
                return self._answer(503, b"")
            path = storage.folder / self.path.removeprefix("/flaky").lstrip("/")
            if self.path.startswith("/private"):
                return self._answer(403, b"")
            if not path.is_file():
                return self._answer(404, b"")
            data, asked = path.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if asked is None or not ranges:
                return self._answer(200, data)
            first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
            return self._answer(206, data[first : last + 1], f"bytes {first}-{last}/{len(data)}")

        def _answer(self, status: int, data: bytes, place: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hash(data):x}"' if status == 200 else '"x"')
            if place:
                self.send_header("Content-Range", place)
            self.end_headers()
            if self.command == "GET":
                storage.reads.append(len(data))
                self.wfile.write(data)

        def log_message(self, *_):
            pass

    storage.flaked = False
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    storage.url = f"http://127.0.0.1:{server.server_address[1]}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield storage
    server.shutdown()
    server.server_close()


@contextmanager
def _counted(storage: Storage) -> Iterator[None]:
    """Count what is read by ranges."""
    real = remote.read_range

    def counting(*arguments):
        data = real(*arguments)
        storage.reads.append(len(data))
        return data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "read_range", counting)
        yield


STORAGES = {"memory": memory, "s3": s3, "web": web}
