"""Blocks of markdown pages that programs fill with measured tables, so that no number is typed by hand.

A block begins at a line `<!-- NAME: begin -->` and ends at `<!-- NAME: end -->`; the text around it is written by
people.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path


def block_names(page: Path) -> list[str]:
    """Return the names of the blocks of a page in their order."""
    return re.findall(r"^<!-- (.+): begin -->$", page.read_text(encoding="utf-8"), re.M)


def read(page: Path, name: str) -> str:
    """Return the contents of a block.

    Raises:
        ValueError: if the page does not have exactly one such block.
    """
    return _parts(page, name)[1].strip()


def fill(page: Path, name: str, text: str) -> None:
    """Replace the contents of a block.

    Raises:
        ValueError: if the page does not have exactly one such block; or if the block's first table would lose columns,
            as when a metric's network is not installed.
    """
    head, before, tail = _parts(page, name)
    columns = _columns(text)
    lost = [column for column in _columns(before) if column not in columns]
    if lost:
        raise ValueError(
            f"block {name!r} of {page} has columns that were not measured now: {', '.join(lost)}. "
            "If they need networks, install these (docs/evaluation.md) and measure again; else empty the block first"
        )
    page.write_text(f"{head}{text.strip()}\n{tail}", encoding="utf-8")


def _parts(page: Path, name: str) -> tuple[str, str, str]:
    """Return a page up to the first line of a block, with it; the block's contents; and the page from its last line."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    whole = page.read_text(encoding="utf-8")
    if whole.count(begin) != 1 or whole.count(end) != 1 or whole.index(end) < whole.index(begin):
        raise ValueError(f"{page} needs one line {begin.strip()!r} and, below it, one {end.strip()!r}")
    head, _, rest = whole.partition(begin)
    contents, _, tail = rest.partition(end)
    return head + begin, contents, end + tail


def _columns(text: str) -> list[str]:
    """Return the columns of the first table of a block, without the first one, which names the rows."""
    heads = [line for line in text.splitlines() if line.startswith("|")]
    return [cell.strip() for cell in heads[0].strip("|").split("|")[1:]] if heads else []


def picture(file: Path, page: Path, text: str) -> str:
    """Return the line that shows a picture on a page, with a text for those who cannot see it."""
    return f"![{text}]({Path(os.path.relpath(file, page.parent)).as_posix()})"


def fill_all(page: Path, tables: Mapping[str, str]) -> None:
    """Fill every block of a page that has the name of a table; leave other blocks as they are.

    Args:
        page: markdown file.
        tables: by the names of their blocks.

    Raises:
        ValueError: if the page has none of these blocks.
    """
    found = [name for name in block_names(page) if name in tables]
    if not found:
        raise ValueError(f"{page} has no block for any of these tables: {', '.join(tables)}")
    for name in found:
        fill(page, name, tables[name])
    print(f"Filled {', '.join(found)} of {page}")
