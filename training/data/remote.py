"""Files at URLs, read by byte ranges through fsspec: s3://, gs://, hf:// and https://.

Nothing is downloaded whole, and no connection is kept: fsspec has one file system for each process, which is made
anew after a fork. `archives.py` and `tables.py` are the sources made of such files.
"""

import io
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from diffusers_mardini.video.opening import FileSection, PartReader
from training.data.folders import Listing
from training.data.remote_errors import RemoteError, named_remote_errors


# The package behind a scheme, and the extra that installs it. `memory` is for tests, and belongs to fsspec itself.
_PACKAGES = {
    "s3": ("s3fs", "remote"), "gs": ("gcsfs", "remote"), "hf": ("huggingface_hub", "train"),
    "https": ("aiohttp", "remote"), "http": ("aiohttp", "remote"), "memory": ("fsspec", "train"),
}  # fmt: skip
_OPTIONS: dict[str, dict[str, Any]] = {
    # A packed answer would have other places than the file. Proxies are those of the environment.
    scheme: {"headers": {"Accept-Encoding": "identity"}, "client_kwargs": {"trust_env": True}}
    for scheme in ("http", "https")
}
# What storage says of the content of a file, the most exact first.
_IDENTITIES = ("ETag", "etag", "blob_id", "md5Hash", "Content-MD5", "Digest")
_TIMES = ("LastModified", "Last-Modified", "updated", "mtime", "created")
# `cat_file` would take the whole of a file from a server without ranges, and read ahead on the Hub.
_BY_OPENING = ("http://", "https://", "hf://")
WHOLE = 16 * 2**20  # bytes of a clip that is read in one go; larger ones by `_BLOCK`
_BLOCK = 2**20
AT_ONCE = 8  # files that are asked for at the same time
_WAITS = (0.5, 2.0, 8.0)  # seconds before the next try, if the connection fails


@dataclass(frozen=True)
class RemoteFile:
    """A file at a URL, as it was when it was found; it can be sent to other processes.

    Attributes:
        url: its address.
        size: in bytes.
        stamp: changes with its content: its ETag or hash, else the time of change.
    """

    url: str
    size: int
    stamp: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """Return the last part of its address."""
        return self.url.rpartition("/")[2]

    def open(self, buffer: int = 8192) -> io.BufferedReader:
        """Open it for reading, at least `buffer` bytes at a time."""
        return io.BufferedReader(_Ranges(self.url, self.size, 0, self.size), buffer)

    def section(self, offset: int, length: int) -> "RemoteSection":
        """Return a part of it, which is not read yet."""
        return RemoteSection(self.url, offset, length, self.size)


@dataclass(frozen=True)
class RemoteSection(FileSection):
    """A part of a file at a URL, such as a clip in a shard.

    Attributes:
        path: the URL.
        size: of the whole file.
    """

    size: int

    @cached_property
    def _data(self) -> bytes:
        """Return all bytes; they are kept, since a clip is hashed and decoded."""
        return read_range(str(self.path), self.size, self.offset, self.offset + self.length)

    def read(self) -> bytes:
        """Return all of its bytes."""
        return self._data if self.length <= WHOLE else super().read()

    def open(self) -> io.BufferedReader:
        """Open it for reading; close it in the end."""
        if self.length <= WHOLE:
            return io.BufferedReader(io.BytesIO(self._data))
        return io.BufferedReader(_Ranges(str(self.path), self.size, self.offset, self.length), _BLOCK)


class _Ranges(PartReader):
    """Reads a part of a file at a URL, each time by a request of its own."""

    def __init__(self, url: str, size: int, offset: int, length: int):
        super().__init__(length)
        self._url, self._size, self._offset = url, size, offset

    def readinto(self, buffer) -> int:
        count = min(len(buffer), max(0, self._length - self._place))
        if count:
            start = self._offset + self._place
            buffer[:count] = read_range(self._url, self._size, start, start + count)
            self._place += count
        return count


def read_range(url: str, size: int, start: int, end: int) -> bytes:
    """Return the bytes from `start` to `end` of a file of `size` bytes.

    Raises:
        RemoteError: if it cannot be read, at the fourth try if the connection fails, or ends before.
    """

    def read() -> bytes:
        with named_remote_errors(url):
            if not url.startswith(_BY_OPENING):
                return _filesystem(url).cat_file(url, start=start, end=end)
            with _filesystem(url).open(url, "rb", cache_type="none", size=size) as file:
                file.seek(start)
                return file.read(end - start)

    if end > size or len(data := _tried(read) if end > start else b"") != end - start:
        raise RemoteError(f"'{url}' ends before byte {end}; it has changed since it was opened")
    return data


def is_remote(spec: str) -> bool:
    """Return whether a source is named by a URL."""
    return "://" in spec


def check_url(url: str) -> None:
    """Refuse a URL that cannot be read by ranges, or would put a secret into manifests and logs.

    Raises:
        ValueError: with what is accepted.
    """
    scheme, _, rest = url.partition("://")
    if "::" in url:
        raise ValueError(f"'{url}' chains several protocols; give the URL of the file itself")
    if scheme not in _PACKAGES:
        known = ", ".join(f"{name}://" for name in _PACKAGES if name != "memory")
        raise ValueError(f"there is no reader for '{scheme}://'; sources of clips may be at {known}, or local paths")
    if scheme != "hf" and "@" in rest.partition("/")[0]:
        raise ValueError(
            f"a URL of {scheme}:// names a user or password, which manifests would show; give credentials by the "
            "environment"
        )
    if scheme.startswith("http") and "?" in rest:
        raise ValueError(
            f"'{url.partition('?')[0]}' is followed by a query, which may be a signature that manifests would show; "
            "give a plain URL"
        )


def find_files(url: str, suffixes: tuple[str, ...]) -> tuple[list[RemoteFile], Listing | None]:
    """Return the files that a URL names, in order.

    Args:
        url: of one file, of several by braces (`{000..009}`) or `*`, or of a folder.
        suffixes: in lower case; a name without any of them is a folder.

    Returns:
        The files, and what else there is in a folder; `None` if none was listed.

    Raises:
        ValueError: if there is no such file, its scheme is unknown, or its package is not installed.
    """
    from webdataset.shardlists import expand_urls

    check_url(url)
    names = list(expand_urls(url))
    system = _filesystem(url)
    system.invalidate_cache()  # of older listings
    if len(names) == 1 and not _is_pattern(url) and not url.lower().endswith(suffixes):
        return _in_folder(url)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            # Only those file systems are shared by threads; that of the Hub lists a folder once for all its files.
            found = list((pool.map if system.async_impl else map)(_named, names))
        finally:
            pool.shutdown(cancel_futures=True)  # after an error
    return [file for files in found for file in files], None


def _is_pattern(url: str) -> bool:
    return any(mark in url for mark in "*?[")


def _named(url: str) -> list[RemoteFile]:
    return _matching(url) if _is_pattern(url) else [_one(url)]


def _one(url: str) -> RemoteFile:
    info = _asked(url, lambda system: system.info(url))
    if info.get("type") != "file":
        raise RemoteError(f"'{url}' is a folder; give its files, as in '{url.rstrip('/')}/*'")
    return _file(url, info)


def _matching(url: str) -> list[RemoteFile]:
    options = _listed(url)
    infos = _asked(url, lambda system: system.glob(url, detail=True, **options))
    files = [_file(_url(url, name), info) for name, info in sorted(infos.items()) if info["type"] == "file"]
    if not files:
        raise RemoteError(f"there is nothing at '{url}'")
    return files


def _in_folder(url: str) -> tuple[list[RemoteFile], Listing]:
    """Return the files of a folder, without those of its folders."""
    _listed(url)
    infos = _asked(url, lambda system: system.ls(url, detail=True))
    files = {
        name: _file(_url(url, info["name"]), info)
        for info in infos
        if info["type"] == "file" and (name := info["name"].rpartition("/")[2])
    }
    if not files:
        raise RemoteError(f"there are no files in the folder '{url}'")
    listing = Listing(url)
    for name in sorted(files):
        if name.startswith("."):
            listing.hidden += 1
        else:
            listing.add(name)
    return list(files.values()), listing


def _listed(url: str) -> dict[str, Any]:
    """Prepare a listing; return what `glob` needs."""
    if url.startswith("http"):
        raise ValueError(
            f"web servers have no lists of files: give those of '{url}' by name, as train-{{000..009}}.tar"
        )
    return {"expand_info": False} if url.startswith("hf://") else {}  # True asks for the last commit of every file


def _asked(url: str, ask: Callable[[Any], Any]) -> Any:
    """Return an answer of the storage."""

    def answer() -> Any:
        with named_remote_errors(url):
            return ask(_filesystem(url))

    return _tried(answer)


def _tried(attempt: Callable[[], Any]) -> Any:
    """Try again, after a while, as long as the connection fails."""
    for seconds in _WAITS:
        try:
            return attempt()
        except RemoteError as error:
            if not error.again:
                raise
            time.sleep(seconds)
    return attempt()


def _filesystem(url: str) -> Any:
    """Return the file system of this process, whose credentials are those of the environment."""
    import fsspec

    scheme = url.partition("://")[0]
    package, extra = _PACKAGES[scheme]
    try:
        with named_remote_errors(url):
            return fsspec.filesystem(scheme, **_OPTIONS.get(scheme, {}))
    except ImportError as error:
        raise RemoteError(
            f"'{url}' cannot be read without {package}: pip install \".[{extra}]\" in the checkout"
        ) from error


def _url(asked: str, name: str) -> str:
    """Return the URL of a file by its name in a listing."""
    return f"{urlsplit(asked).scheme}://{name.lstrip('/')}"


def _file(url: str, info: dict[str, Any]) -> RemoteFile:
    size = info.get("size")
    if not isinstance(size, int):
        raise RemoteError(f"the server of '{url}' does not say how large it is, so it cannot be read by ranges")
    if info.get("partial") is False:
        raise RemoteError(f"the server of '{url}' does not answer byte ranges; download the file")
    # An ETag alone where there is one: times are more exact in some answers than in others.
    identity = next((f"{info[name]}" for name in _IDENTITIES if info.get(name)), "")
    moment = next((f"{info[name]}" for name in _TIMES if info.get(name)), "")
    return RemoteFile(url, size, f"{size} {identity or moment}".replace('"', "").strip())
