"""YAML files: errors name file and line, and a key is given once."""

import pytest

from training.config.layers import load_config
from training.config.yaml_files import load_yaml, parse_yaml


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: 1\nb: 2\na: 3\n", "'a' is given twice, in line 1 and in line 3; keep one of them"),
        ("s:\n  x: 1\n  x: 1\n", "'x' is given twice, in line 2 and in line 3"),
        ("s: {1: .5, 0x1: 3}", "'0x1' is given twice, in line 1 and in line 1"),
        ("s: [{x: 1,\n x: 2}]", "'x' is given twice, in line 1 and in line 2"),
        ("'a': 1\na: 2", "'a' is given twice"),
        ("yes: 1\ntrue: 2", "'true' is given twice"),
        ("a:\n\tb: 1", r"not YAML \(line 2, column 1\).*indent with spaces, not with tabs"),
        ("a: 1\nb: *x", r"not YAML \(line 2, column 4\): found undefined alias 'x'"),
        ("a: &x {b: *x}", r"line 1.*\*x contains itself"),
        ("a: &x [1, [*x]]", r"line 1.*\*x contains itself"),
        ("- 1", "line 1: holds a list; it has to be a mapping"),
        ("# only this\n\n5", "line 3: holds 5; it has to be a mapping"),
        ("", "line 1: holds nothing"),
        ("text", "line 1: holds text"),
        ("a: 1\nb: 2025-13-45", r"line 2.*'2025-13-45' cannot be read \(month must be in 1..12\)"),
        ("a: !!int x", "line 1.*'x' cannot be read"),
        ("a: !!python/object/apply:os.getcwd []", "line 1.*python/object"),
        ("a: 1\n---\nb: 2", "line 2.*another document"),
        ("[1]: 2\n", "line 1.*unhashable key"),
        ("a: b: c", "line 1.*mapping values are not allowed"),
        ("a: [1\nb: 2", "line 2"),
        ("a: 1\nb: \x07", "line 2.*special characters"),
        ("[" * 3000, "nested too deeply"),
    ],
)
def test_unreadable_yaml_is_reported_with_file_and_line(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"(?s)run.yaml.*{message}"):
        load_yaml(path)


def test_a_merged_mapping_may_be_changed(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("b: &b {x: 1, y: 2}\nc: &c {<<: *b, x: 3}\nd: {<<: *c, y: 5}\ne: [*b, *b]\n")
    found = load_yaml(path)
    assert found["c"] == {"x": 3, "y": 2} and found["d"] == {"x": 3, "y": 5} and found["e"] == [found["b"]] * 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_of_another_editor_is_read(tmp_path, encoding):
    path = tmp_path / "run.yaml"
    path.write_bytes("a: 1\r\nname: Zürich\r\n".encode(encoding))
    assert load_yaml(path) == {"a": 1, "name": "Zürich"}


def test_a_file_in_another_encoding_is_refused_with_its_line(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes("a: 1\nb: Zürich\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"run.yaml is not YAML \(line 2\).*save it as UTF-8"):
        load_yaml(path)
    with pytest.raises(ValueError, match="cannot be read"):
        load_yaml(tmp_path)


def test_a_parent_that_gives_a_key_twice_is_named_itself(tmp_path):
    (tmp_path / "base.yaml").write_text("name: a\nseed: 1\nseed: 2\n")
    (tmp_path / "child.yaml").write_text("extends: base.yaml\n")
    with pytest.raises(ValueError, match="base.yaml: the key 'seed' is given twice, in line 2 and in line 3"):
        load_config(tmp_path / "child.yaml")
    with pytest.raises(ValueError, match="the override 'data={a: 1, a: 2}': the key 'a' is given twice"):
        load_config(
            tmp_path / "other.yaml" if (tmp_path / "other.yaml").write_text("name: a") else "", ["data={a: 1, a: 2}"]
        )


def test_numbers_are_those_of_yaml_1_2():
    values = parse_yaml("[3e-4, 1e5, 010, 1:30, 1_000, 0x1f, .5, -1.5e+3, 08, +12, 0, yes, 1.]", "it")
    assert values == [3e-4, 1e5, "010", "1:30", 1000, 31, 0.5, -1500.0, "08", 12, 0, True, 1.0]
