"""Files and folders are written whole or not at all; damaged lines are left out and damaged files are named."""

import json
import os
from pathlib import Path

import pytest

from training.files import (
    append_line,
    read_json,
    read_lines,
    remove_folder,
    whole_file,
    whole_folder,
    write_whole,
)


DAMAGED = [
    b"\0\0\0",
    b"\xff\xfe",
    b'{"global_step": 1, "sta',
    b"[1]",
    b"3",
    b"{}",
    b'{"global_step": "1", "stage": "a"}',
    b"null",
]
GOOD = {"global_step": 1, "stage": "planner", "step": 1, "windows_seen": 2}


@pytest.mark.parametrize("line", DAMAGED)
@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_damaged_line_is_left_out_with_a_word(tmp_path, capsys, line, end):
    path = tmp_path / "metrics.jsonl"
    good = json.dumps(GOOD).encode()
    path.write_bytes(good + b"\n" + line + b"\n" + good + b"\n" + line + end)
    assert read_lines(path, {"global_step": int, "stage": str}) == [GOOD, GOOD]
    told = capsys.readouterr().out.splitlines()
    assert [text.partition(": damaged, left out")[0] for text in told] == [
        f"{path}, line {n}" for n in ([2, 4] if end else [2])
    ]


def test_zeros_before_a_line_do_not_cost_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\0\0\0" + json.dumps(GOOD).encode() + b"\n")
    assert read_lines(path, {"global_step": int}) == [GOOD]
    path.write_bytes(json.dumps(GOOD).encode())  # only the line break is missing
    assert read_lines(path) == [GOOD] and read_lines(tmp_path / "none.jsonl") == []


def test_a_line_is_not_added_to_half_of_another(tmp_path, capsys):
    path = tmp_path / "starts.jsonl"
    append_line(path, {"a": 1})
    path.write_bytes(path.read_bytes() + b'{"a": 2')
    append_line(path, {"a": 3})
    append_line(path, {"a": 4})
    assert read_lines(path) == [{"a": 1}, {"a": 3}, {"a": 4}] and "line 2: damaged" in capsys.readouterr().out


def test_a_json_file_is_named_with_what_it_lacks(tmp_path):
    path = tmp_path / "results.json"
    path.write_text('{"a": 1}')
    assert read_json(path, ["a"]) == {"a": 1}
    with pytest.raises(ValueError, match="results.json' cannot be read as JSON .it has no b, no c"):
        read_json(path, ["a", "b", "c"])


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_whole(path, "ä\n")
    with pytest.raises(RuntimeError), whole_file(path) as unfinished:
        unfinished.write_text("half")
        assert unfinished.name.startswith(".a.txt") and unfinished.suffix == ".part"
        raise RuntimeError
    assert path.read_bytes() == "ä\n".encode() and os.listdir(path.parent) == ["a.txt"]
    write_whole(path, b"other")
    assert path.read_bytes() == b"other" and os.listdir(path.parent) == ["a.txt"]


def test_a_folder_is_replaced_whole_or_stays_as_it_was(tmp_path):
    def write(content: str, fails: bool = False) -> None:
        with whole_folder(tmp_path / "out") as unfinished:
            (unfinished / content).mkdir()
            (unfinished / content / "file").write_text(content)
            if fails:
                raise RuntimeError

    write("first")
    with pytest.raises(RuntimeError):
        write("second", fails=True)
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["first"]
    write("third")
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["third"]
    remove_folder(tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_of_a_folder_is_not_mixed_into_the_next(tmp_path):
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part" / "leftover").touch()
    with whole_folder(tmp_path / "out") as unfinished:
        (unfinished / "file").touch()
    assert os.listdir(tmp_path / "out") == ["file"]


def test_a_folder_whose_files_are_write_protected_can_be_written(tmp_path):
    with whole_folder(tmp_path / "out") as unfinished:
        (unfinished / "file").touch()
        (unfinished / "file").chmod(0o400)
    assert os.listdir(tmp_path / "out") == ["file"]


def test_two_processes_may_write_one_file(tmp_path):
    path, children = tmp_path / "a.json", []
    for text in "ab":
        children.append(os.fork())
        if children[-1] == 0:
            for _ in range(20):
                write_whole(path, text * 100000)
            os._exit(0)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert path.read_text() in ("a" * 100000, "b" * 100000) and os.listdir(tmp_path) == ["a.json"]


def test_no_other_module_of_the_trainer_replaces_files_itself():
    """All go through `training/files.py`, with its one suffix."""
    root = Path(__file__).resolve().parents[2] / "training"
    for path in root.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name != "files.py":
            assert not any(word in text for word in ("os.replace(", "os.fsync(", '.partial"', '.part"')), path


def test_two_calls_that_write_one_file_have_hidden_files_of_their_own(tmp_path):
    """In containers, processes of several machines often have the same number."""
    with whole_file(tmp_path / "a") as first, whole_file(tmp_path / "a") as second:
        assert first != second
        first.write_text("1")
        second.write_text("2")
    assert (tmp_path / "a").read_text() == "1" and [path.name for path in tmp_path.iterdir()] == ["a"]
