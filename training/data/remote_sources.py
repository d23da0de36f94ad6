"""Open sources that are named by URLs: tar and zip archives, and Parquet files, read by byte ranges.

`remote.py` reads the files; `archives.py` and `tables.py` are the sources.
"""

from pathlib import Path

from training.data.archives import ARCHIVE_SUFFIXES, PACKED_TARS, ArchiveClips
from training.data.remote import RemoteFile, find_files
from training.data.tables import SUFFIX, ParquetClips


def open_remote(url: str, fps: float | None = None, manifests: Path | None = None) -> ArchiveClips | ParquetClips:
    """Open a source at a URL.

    Args:
        url: of an archive or a Parquet file, of several by braces or `*`, or of a folder of them; the column of the
            videos may follow after `#`.
        fps: frames per second of folders of pictures in archives.
        manifests: the folder of the manifests, which keeps what the files hold; else every opening finds it anew.

    Raises:
        ValueError: if the URL cannot be read, or names something else.
    """
    address, _, column = url.partition("#")
    if address.lower().endswith(PACKED_TARS):
        raise ValueError(
            f"'{address}' is compressed as a whole, so none of its clips can be read without all before it; pack it "
            "again as .tar"
        )
    found, listing = find_files(address, (*ARCHIVE_SUFFIXES, SUFFIX))
    files = {file.name: file for file in found}
    if len(files) < len(found):
        raise ValueError(f"several files of '{address}' have the same name; give each a name of its own")
    if listing is not None:
        names = listing.shards or sorted(listing.others.get(SUFFIX, ()))
        files = {name: files[name] for name in names}
    kinds = {_kind(file) for file in files.values()}
    if kinds == {SUFFIX}:
        return ParquetClips(url, list(files.values()), column, listing, manifests)
    if kinds == {ARCHIVE_SUFFIXES} and not column:
        return ArchiveClips(url, fps, listing, list(files.values()), manifests)
    raise ValueError(
        f"'{url}' names no clips; a URL may name .tar or .zip archives, or Parquet files (one kind, the column of the "
        "videos after #): one file, several as train-{000..009}.tar or *.parquet, or a folder of them"
        + ("" if listing is None else listing.summary())
    )


def _kind(file: RemoteFile) -> object:
    name = file.name.lower()
    return SUFFIX if name.endswith(SUFFIX) else ARCHIVE_SUFFIXES if name.endswith(ARCHIVE_SUFFIXES) else name
