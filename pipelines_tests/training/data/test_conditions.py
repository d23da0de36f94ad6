"""Conditions of a window's frames: tables beside clips, intervals, rates and motion."""

import re
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml

from diffusers_mardini.models.conditions import Condition
from diffusers_mardini.pipelines.conditions import conditions_at
from diffusers_mardini.video_io import write_video
from training.config.data_section import ConditionConfig, DataConfig
from training.data.conditions import ClipConditions, frame_intervals, latent_motion, read_table
from training.data.manifest import make_manifest
from training.data.recipes.car_racing import ACTION_NAMES
from training.data.sources import open_source


PAGE = Path(__file__).parents[3] / "docs/data.md"
ACTION = ConditionConfig(columns=["steer", "gas"], range=[(-1, 1), (0, 1)])


def clip_with(folder, rows, name="a", frames=12):
    folder.mkdir(exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (frames, 16, 16, 3), dtype=np.uint8)
    write_video(folder / f"{name}.mp4", noise, 10)
    if rows is not None:
        (folder / f"{name}.csv").write_text("steer,gas,other\n" + "".join(f"{s},{g},x\n" for s, g in rows))
    source = open_source(folder)
    return source, make_manifest(source, folder.parent / "manifest.parquet", 1).ok[0]


def cut(values, places, interval="mean"):
    known = {"x": Condition("x", 1, interval=interval)}
    return conditions_at({"x": torch.tensor(values)[None, :, None]}, known, places)["x"][0, :, 0]


def test_an_action_is_the_mean_over_the_interval_that_leads_to_its_frame():
    values = [float(i) for i in range(12)]
    assert cut(values, [2, 5, 8]).tolist() == [1.0, 4.0, 7.0]  # 0..2, 3..5, 6..8
    assert cut(values, [0, 3]).tolist() == [0.0, 2.0]  # cut off at the beginning of the clip
    assert cut(values, [4, 5], "sum").tolist() == [4.0, 5.0]
    assert cut(values, [1, 3], "sum").tolist() == [1.0, 5.0]


def test_a_frame_that_comes_twice_keeps_its_own_value():
    assert cut([0.0, 1.0, 2.0, 3.0, 4.0], [2, 3, 3]).tolist() == [2.0, 3.0, 3.0]


def test_rates_are_seconds_and_the_first_frame_has_none():
    assert frame_intervals(np.array([1.0, 1.5, 1.75])).tolist()[1:] == [[0.5], [0.25]]
    assert frame_intervals(np.array([1.0, 1.5])).isnan().tolist() == [[True], [False]]


def test_motion_is_the_difference_of_neighbouring_latents():
    latents = torch.stack([torch.zeros(2, 3, 3), torch.ones(2, 3, 3), torch.full((2, 3, 3), 0.5)])
    assert latent_motion(latents)[1:].tolist() == [[1.0], [0.5]] and latent_motion(latents)[0].isnan()


def test_a_window_has_the_values_of_the_table_beside_its_clip(tmp_path):
    source, entry = clip_with(tmp_path / "clips", [(i / 100, 0.5) for i in range(12)])
    conditions = ClipConditions(
        source, {"action": ACTION, "rate": ConditionConfig(derive="rate", range=[(0.05, 0.5)])}
    )
    assert conditions.why_absent(entry) is None
    found = conditions.of(entry, (1, 3, 5), torch.zeros(3, 4, 2, 2))
    torch.testing.assert_close(found["action"], torch.tensor([[0.005, 0.5], [0.025, 0.5], [0.045, 0.5]]))
    torch.testing.assert_close(found["rate"][1:], torch.full((2, 1), 0.2))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (None, "0 tables of conditions beside it; give one, a.csv or a.parquet"),
        ([(0, 0)] * 11, "11 rows and its clip 12 frames"),
        ([(0, "fast")] * 12, "column gas holds 'fast', which is no number"),
        ([(0, "inf")] * 12, "not finite"),
    ],
)
def test_a_clip_whose_table_cannot_be_used_says_why(tmp_path, rows, said):
    source, entry = clip_with(tmp_path / "clips", rows)
    assert said in ClipConditions(source, {"action": ACTION}).why_absent(entry)


def test_a_missing_column_names_those_that_are_there(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="t.csv.*no column c; its columns are a, b"):
        read_table(tmp_path / "t.csv", ["a", "c"])


def test_an_empty_cell_is_not_known(tmp_path):
    (tmp_path / "t.csv").write_text("\ufeffa\n1\n\n2\n", encoding="utf-8")  # csv passes over empty lines
    assert read_table(tmp_path / "t.csv", ["a"])["a"].tolist() == [1.0, 2.0]
    (tmp_path / "t.csv").write_text("a,b\n1,\n")
    assert np.isnan(read_table(tmp_path / "t.csv", ["b"])["b"]).all()


def test_a_frame_that_lacks_one_value_lacks_the_condition(tmp_path):
    """The models know all values of a condition or none: half of one would make the loss NaN."""
    source, entry = clip_with(tmp_path / "clips", [(0.1, 0.2), (0.3, ""), (0.5, 0.6), (0.7, 0.8)], frames=4)
    found = ClipConditions(source, {"action": ACTION})
    each = found.of(entry, [0, 1, 2, 3], torch.zeros(4, 1, 1, 1))["action"]
    assert each.isnan().all(dim=1).tolist() == [False, True, False, False] and not each[[0, 2, 3]].isnan().any()
    # Over an interval the known rows of each channel count, so that nothing is lacking.
    assert found.of(entry, [0, 2], torch.zeros(2, 1, 1, 1))["action"][1].tolist() == pytest.approx([0.4, 0.6])


def test_parquet_is_read_and_its_vectors_are_columns(tmp_path):
    table = pyarrow.table({"speed": [1.0, 2.0], "action": [[0.0, 0.1], [1.0, 1.1]]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    found = read_table(tmp_path / "t.parquet", ["action.1", "speed"])
    assert found["action.1"].tolist() == pytest.approx([0.1, 1.1]) and found["speed"].tolist() == [1.0, 2.0]


def test_a_damaged_table_is_named(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="t.parquet"):
        read_table(tmp_path / "t.parquet", ["a"])


def test_a_condition_has_one_origin_and_a_range_for_its_channels():
    for wrong in (
        {"range": [(0, 1)]},
        {"columns": ["a"], "derive": "rate", "range": [(0, 1)]},
        {"columns": ["a", "b", "c"], "range": [(0, 1), (0, 1)]},
        {"columns": ["a"], "range": [(1, 0)]},
    ):
        with pytest.raises(ValueError):
            ConditionConfig(**wrong)


def test_the_example_of_the_page_fits_the_tables_that_the_simulator_recipe_writes():
    section = PAGE.read_text(encoding="utf-8").partition("## Conditions")[2].partition("\n## ")[0]
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", section, re.DOTALL | re.M)
    data = DataConfig(**yaml.safe_load(block)["data"])
    assert tuple(data.conditions["action"].columns) == ACTION_NAMES
    assert [data.conditions[name].derive for name in ("rate", "motion")] == ["rate", "motion"]
