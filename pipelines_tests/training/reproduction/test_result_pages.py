"""Every number on a page of results has a command that can fill it, and every script makes what it fills a page with."""

import re

import pytest

from pipelines_tests.recorded_scripts import ROOT, SCRIPTS, Done, commands, filling_scripts
from training.page_blocks import block_names


PAGES = sorted((ROOT / "docs" / "results").glob("*.md"))
# A line that calls a program, or a function of a script that does.
CALL = re.compile(
    r'^\s*(?:"\$PYTHON"|train|score|sample|side_by_side|set_side_by_side|compare|fill|fill_block|copied|drift|asymmetry|between'
    r'|onwards|"\$way"|if .*"\$way"|\[ -f .*"\$PYTHON" -m (?!training\.data)|\[ -d .*\|\| train|for .* do (?:score|between)) .*$'
)


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """Return what each script has left behind, by its name."""
    return {script: Done().follow(commands(script, tmp_path_factory.mktemp(script))) for script in filling_scripts()}


def filled_by(all_done):
    """Return the first cells of the rows by page and block, as all scripts together fill them."""
    together = {}
    for done in all_done:
        for page, blocks in done.filled.items():
            together.setdefault(page, {}).update(blocks)
    return together


def missing(all_done):
    """Return what pages show and no script fills."""
    together, found = filled_by(all_done), []
    for page in (*PAGES, ROOT / "README.md"):
        name = page.relative_to(ROOT).as_posix()
        text = page.read_text(encoding="utf-8")
        for block in block_names(page):
            if block not in together.get(name, {}):
                found.append(f"{name}: no script fills {block!r}")
            elif (labels := together[name][block]) is not None:
                content = text.partition(f"<!-- {block}: begin -->\n")[2].partition("<!-- ")[0]
                shown = first_cells(content, len(next(iter(labels))))
                found += [f"{name}: no script fills the row {row} of {block!r}" for row in shown if row not in labels]
    return found


def first_cells(block, count):
    """Return the first cells of the rows of all tables of a block."""
    tables = re.findall(r"^\|.*\n\|---.*\n((?:\|.*\n)*)", block, re.M)
    lines = [line for table in tables for line in table.splitlines()]
    return [tuple(line.strip("| ").split(" | ")[:count]) for line in lines]


def test_every_block_and_row_of_a_page_is_filled_by_a_script(followed):
    assert not missing(followed.values())


def test_every_picture_of_a_page_is_drawn_by_a_script(followed):
    drawn = set().union(*(done.pictures for done in followed.values()))
    for page in PAGES:
        for path in re.findall(r"\]\(\.\./(images/results/[^)]+)\)", page.read_text(encoding="utf-8")):
            assert f"docs/{path}" in drawn, f"no script draws {path} of {page.name}"


def lines_that_call():
    for script in filling_scripts():
        for number, line in enumerate((SCRIPTS / script).read_text(encoding="utf-8").splitlines()):
            if CALL.match(line) and "training.publish" not in line and "() {" not in line:
                yield pytest.param(script, number, id=f"{script}:{number + 1}")


@pytest.mark.parametrize("script, number", list(lines_that_call()))
def test_a_script_that_lacks_one_of_its_commands_is_found_out(script, number, followed, tmp_path):
    lines = (SCRIPTS / script).read_text(encoding="utf-8").splitlines()
    end = number
    while lines[end].endswith("\\"):
        end += 1
    without = [*lines[:number], ":", *lines[end + 1 :]]
    try:
        done = Done().follow(commands(script, tmp_path, "\n".join(without) + "\n"))
    except AssertionError:
        return  # something is compared, or put on a page, that nothing has made
    others = [each for name, each in followed.items() if name != script]
    pictures = set().union(*(each.pictures for each in (*others, done)))
    assert missing([*others, done]) or pictures < set().union(*(each.pictures for each in followed.values()))


@pytest.mark.parametrize(
    "script, words, fewer",
    [
        ("long_video.sh", "32 64 128)", "32 64)"),
        ("long_video.sh", " --range 951 1000)", ")"),
        ("long_video.sh", "frames=1152", "frames=1000"),
        ("long_video.sh", 'anchor=(--arm "anchor: anchors=1")', "anchor=()"),
        ("balance.sh", "SEEDS:-1 2", "SEEDS:-1"),
    ],
)  # what is left out is on the page
def test_a_script_that_lacks_ranges_factors_arms_or_seeds_is_found_out(script, words, fewer, followed, tmp_path):
    text = (SCRIPTS / script).read_text(encoding="utf-8")
    assert words in text
    try:
        done = Done().follow(commands(script, tmp_path, text.replace(words, fewer)))
    except AssertionError:
        return
    assert missing([*(each for name, each in followed.items() if name != script), done])


@pytest.mark.parametrize(
    "script", [name for name in filling_scripts() if "own=" in (SCRIPTS / name).read_text(encoding="utf-8")]
)
def test_another_checkpoint_leaves_the_page_and_its_pictures_alone(script, tmp_path):
    recorded = commands(script, tmp_path, CHECKPOINT="checkpoints/other", RACING="")
    assert recorded and not any("docs/" in word for command in recorded for word in command)
    assert not any(word.startswith("outputs/results/") and "other" not in word for c in recorded for word in c)
    asked = commands(script, tmp_path, CHECKPOINT="checkpoints/other", RACING="", OUT="mine", PAGE="mine.md")
    words = {word for command in asked for word in command}
    assert "mine.md" in words or script == "figure_5.sh"
    assert not any(word.startswith(("docs/", "outputs/")) for word in words)
