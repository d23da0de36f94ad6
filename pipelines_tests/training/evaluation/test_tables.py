"""Tables in markdown."""

import math

from training.evaluation.tables import markdown_table, score_table


def test_a_table_has_a_rule_below_its_head_and_no_line_break_at_its_end():
    assert markdown_table(["a", ""], [(1, "x"), ("y", 2.5)]) == "| a |  |\n|---|---|\n| 1 | x |\n| y | 2.5 |"


def test_bars_in_cells_do_not_end_them():
    assert markdown_table(["a"], [["x|y"]]).splitlines()[-1] == "| x\\|y |"


def test_a_score_that_is_not_a_number_is_a_dash_and_columns_that_not_all_rows_have_are_left_out():
    rows = [
        {"method": "still", "mid_ssim": 0.5, "motion": math.nan, "intervals": {"mid_ssim": (0.4, math.nan)}},
        {"method": "other", "mid_ssim": 0.6, "motion": 1.0, "fid": 3.0, "intervals": {"mid_ssim": (0.5, 0.7)}},
    ]
    lines = score_table(rows).splitlines()
    assert lines[0] == "| method | mid SSIM | motion |"
    assert lines[2:] == ["| still | 0.500 [0.400, –] | – |", "| other | 0.600 [0.500, 0.700] | 1.00 |"]
