"""Windows of the comparison of places between."""

from training.reproduction.places_between import group, sparse_grids, table


def test_windows_hold_whole_gaps_and_only_what_is_in_demand():
    windows = group([0, 5, 10, 15], [2, 4, 6, 8, 12, 14], most=7)
    assert windows == [([0, 2, 4, 5, 6, 8, 10], [0, 5, 10]), ([10, 12, 14, 15], [10, 15])]
    assert group([0, 5, 10], [], most=9) == []


def test_a_sparse_grid_spans_eight_units():
    windows = sparse_grids([0, 4, 8, 12], [5, 10], unit=1)
    assert windows == [([0, 4, 5, 8], [0, 4, 8]), ([8, 10, 12], [8, 12])]


def test_the_table_has_a_row_for_each_way():
    row = {"case": "a", "way": "b", "ssim": 0.9, "psnr": 30.0, "unevenness": 0.1, "intervals": {"ssim": (0.8, 1.0)}}
    assert table([row]).splitlines()[2] == "| a | b | 0.900 [0.800, 1.000] | 30.00 | 0.100 |"
