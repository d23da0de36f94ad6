"""The tables of the page of Table 3, from what the benchmark writes."""

import json

import pytest

from training.reproduction.table_3 import ROWS, main, memory, operations, timed


@pytest.fixture
def results(tmp_path):
    names = list(ROWS)
    for size in (64, 256):
        seconds = [{"variant": name, "seconds": {"median": 2.0 * (i + 1)}, "of_mardini": {"median": i + 1, "least": i + 0.5, "largest": i + 1.5}}
                   for i, name in enumerate(names)]  # fmt: skip
        (tmp_path / f"timed-{size}.json").write_text(json.dumps({"timed": seconds}))
        peaks = [{"variant": name, "imported_bytes": 400e6, "peak_bytes": 471e6} for name in names]
        (tmp_path / f"memory-{size}.json").write_text(json.dumps({"memory": peaks}))
    counted = [
        {"preset": preset, "size": size, "variant": name, "operations": 1e13 * (i + 1)}
        for preset in ("mardini-tiny", "mardini-l-t", "mardini-s-t")
        for size in (64, 256, 512, 768, 1024)
        for i, name in enumerate(names)
    ]
    for name in ("counted-tiny", "counted"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"counted": counted}))
    return tmp_path


def test_tables_show_what_was_measured_and_its_ratio(results):
    assert "| the same, spatio-temporal attention | 4.00 | 2.00 (1.50 to 2.50) |" in timed(results, {})
    beside = timed(results, {"AMD": results}).splitlines()
    assert beside[0].endswith("| AMD, 64x64 | 256x256 |") and beside[3].endswith("| 1 (2.00 s) | 1 (2.00 s) |")
    assert "| planner at low resolution, at every step | 30,000 | 3.00 |" in operations(results)
    assert memory(results).splitlines()[2] == "| planner at low resolution (MarDini) | 71 | 71 |"


def test_the_page_is_filled(results, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("<!-- paper sizes: begin -->\n<!-- paper sizes: end -->\n")
    main([str(results), "--page", str(page)])
    filled = page.read_text()
    assert "| L/T | 10.0 | 10.0 | 10.0 | 10.0 |" in filled and "| S/T, symmetric | 50.0 (5.0x) |" in filled
    with pytest.raises(SystemExit, match="counted-tiny.json"):
        (results / "counted-tiny.json").unlink()
        main([str(results)])
