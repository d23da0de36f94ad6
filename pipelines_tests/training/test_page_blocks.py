import pytest

from training.page_blocks import block_names, fill, fill_all


PAGE = "above\n<!-- a: begin -->\nold\n<!-- a: end -->\nbetween\n<!-- b, short: begin -->\n<!-- b, short: end -->\nbelow\n"


def test_only_the_block_changes_and_filling_it_again_changes_nothing(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert block_names(page) == ["a", "b, short"]
    fill(page, "b, short", "new\n\n")
    fill(page, "a", "| 1 |\n| 2 |\n")
    filled = page.read_text()
    assert filled == PAGE.replace("old\n", "| 1 |\n| 2 |\n").replace("begin -->\n<!-- b", "begin -->\nnew\n<!-- b")
    fill(page, "a", "| 1 |\n| 2 |\n")
    assert page.read_text() == filled


def test_a_page_without_the_block_or_with_two_is_refused_and_left_alone(tmp_path):
    page = tmp_path / "page.md"
    for text in ("nothing\n", PAGE + PAGE, PAGE.replace("<!-- a: end -->\n", "")):
        page.write_text(text)
        with pytest.raises(ValueError, match="'<!-- a: begin -->' and, below it, one '<!-- a: end -->'"):
            fill(page, "a", "new")
        assert page.read_text() == text


def test_tables_go_to_their_blocks_and_a_page_with_none_of_them_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    fill_all(page, {"a": "| 1 |", "unwanted": "| 2 |"})
    assert page.read_text() == PAGE.replace("old", "| 1 |")
    with pytest.raises(ValueError, match="no block for any of these tables: c, d"):
        fill_all(page, {"c": "", "d": ""})


def test_a_table_that_lost_columns_does_not_replace_one_that_has_them(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        PAGE.replace("old\n", "six windows\n\n| method | SSIM | LPIPS |\n|---|---|---|\n| copy | 1 | 2 |\n")
    )
    before = page.read_text()
    with pytest.raises(
        ValueError, match="block 'a' .* columns that were not measured now: LPIPS. If they need networks"
    ):
        fill(page, "a", "six windows\n\n| difference | SSIM |\n|---|---|\n| copy | 1 |\n")
    assert page.read_text() == before
    fill(page, "a", "| difference | SSIM | LPIPS | motion |\n")
    assert "| difference | SSIM | LPIPS | motion |\n" in page.read_text()
