"""Copy what a program wrote for itself into a block of a page: its tables, and its picture beside the page's own.

    python -m training.reproduction.copied_result outputs/counterfactuals/mine/counterfactuals.md \
        --picture docs/images/results/counterfactuals.png "what it shows" --page PAGE BLOCK

The first line of the file, the command with this machine's folders, stays behind: the page has the script. The
picture is the file of the same name that ends in `.png`.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from training.page_blocks import fill, picture


def tables_of(file: Path) -> str:
    """Return the text of a result without the command that made it.

    Raises:
        ValueError: if the file is missing, or does not begin with a command.
    """
    if not file.is_file():
        raise ValueError(f"there is no {file}; run the program that writes it first")
    command, _, text = file.read_text(encoding="utf-8").partition("\n\n")
    if not command.startswith("`python -m ") or not text.strip():
        raise ValueError(f"{file} does not begin with the command that made it, as the files of results do")
    return text.strip()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="python -m training.reproduction.copied_result", description=__doc__.splitlines()[0]
    )
    parser.add_argument("file", type=Path, help="markdown file that begins with its command")
    parser.add_argument(
        "--picture", nargs=2, metavar=("PNG", "TEXT"), help="where its picture goes, and what it shows"
    )
    parser.add_argument("--page", nargs=2, metavar=("PAGE", "BLOCK"), help="markdown file and its block")
    options = parser.parse_args(arguments)
    try:
        text = tables_of(options.file)
        if options.picture:
            target = Path(options.picture[0])
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(options.file.with_suffix(".png"), target)
        if options.page:
            page = Path(options.page[0])
            shown = f"{picture(target, page, options.picture[1])}\n\n" if options.picture else ""
            fill(page, options.page[1], f"{shown}{text}")
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from error
    print(text)


if __name__ == "__main__":
    main()
