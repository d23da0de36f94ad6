"""The configuration: layers, overrides, alternatives, and errors that teach."""

from pathlib import Path

import pytest

from diffusers_mardini.presets import load_preset
from training.config.layers import load_config
from training.config.reference import PAGE, reference
from training.config.schema import RunConfig, StageConfig, default_of


CONFIGS = Path("training/configs")
BASE = """
name: base
vae: v
data: {train: clips, size: 32}
optimizer: {ema_decay: 0.9}
stages:
  - {name: a, trains: planner, steps: 1, strides: {2: 1.0}}
  - {name: b, trains: joint, clips: 100, global_batch: 30, fps: 8, planning_dropout: 0.2}
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_child_changes_what_it_names_and_keeps_the_rest(tmp_path):
    write(tmp_path, "base.yaml", BASE)
    text = """
extends: ../base.yaml
name: child
data: {size: 64}
stages:
  a: {strides: {1: 0.5}}
  b: {num_frames: 17}
  c: {trains: joint, steps: 3}
"""
    config = load_config(write(tmp_path, "sub/child.yaml", text))
    assert (config.name, config.data.size, str(config.data.train)) == ("child", 64, "clips")
    assert [stage.name for stage in config.stages] == ["a", "b", "c"]
    assert config.stages[0].strides == {1: 0.5} and config.stages[0].trains == "planner"  # not {1: 0.5, 2: 1.0}
    assert (config.stages[1].num_frames, config.stages[1].planning_dropout) == (17, 0.2)


def test_a_list_of_stages_replaces_the_parents(tmp_path):
    write(tmp_path, "base.yaml", BASE)
    child = write(tmp_path, "child.yaml", "extends: base.yaml\nstages: [{name: b, trains: joint, steps: 2}]")
    (stage,) = load_config(child).stages
    assert (stage.steps, stage.planning_dropout, stage.fps) == (2, 0.1, None)


def test_a_stage_that_is_null_is_taken_out(tmp_path):
    write(tmp_path, "base.yaml", BASE)
    child = write(tmp_path, "child.yaml", "extends: base.yaml\nstages: {a: null}")
    assert [stage.name for stage in load_config(child).stages] == ["b"]
    assert [stage.name for stage in load_config(tmp_path / "base.yaml", ["stages.b=null"]).stages] == ["a"]
    with pytest.raises(ValueError, match="there is no stage 'a'; the stages are b"):
        load_config(child, ["stages.a=null"])
    with pytest.raises(ValueError, match="override stages.b=null: stages: .*at least 1"):
        load_config(child, ["stages.b=null"])


def test_the_planner_sees_frames_as_small_as_its_preset_says(tmp_path):
    path = write(tmp_path, "base.yaml", BASE)
    for preset in ("mardini-tiny", "mardini-l-t"):
        config = load_config(path, [f"preset={preset}"])
        assert config.data.planner_downscale == load_preset(preset)["planner_downscale"]
        assert RunConfig.model_validate_json(config.model_dump_json()) == config
    assert load_config(path, ["data.planner_downscale=1", "preset=mardini-l-t"]).data.planner_downscale == 1


def test_overrides_reach_every_level_and_parse_yaml(tmp_path):
    overrides = ["optimizer.ema_decay=0.99", "stages.b.learning_rate=1e-3", "stages.b.tasks={random: 0, leading: 1}",
                 "gradient_checkpointing=true", "planner.eps=1e-5", "init_from=null"]  # fmt: skip
    config = load_config(write(tmp_path, "base.yaml", BASE), overrides)
    assert config.optimizer.ema_decay == 0.99 and config.gradient_checkpointing and config.init_from is None
    assert config.stages[1].learning_rate == 1e-3 and config.stages[1].tasks.leading == 1
    assert config.planner == {"eps": 1e-5} and config.stages[0].learning_rate == 1.4e-4


def test_naming_one_of_two_alternatives_drops_the_parents_other_one(tmp_path):
    stage = load_config(
        write(tmp_path, "base.yaml", BASE), ["stages.b.steps=5", "stages.b.batch_size=2", "stages.b.strides={3: 1}"]
    ).stages[1]
    assert (stage.steps, stage.clips) == (5, None)
    assert (stage.batch_size, stage.global_batch) == (2, 30)  # 30 windows, two at once
    assert (stage.strides, stage.fps) == ({3: 1.0}, None)


def test_a_stage_has_a_size_or_buckets(tmp_path):
    base = write(tmp_path, "base.yaml", BASE)
    config = load_config(base, ["stages.a.size=[32, 64]", "stages.b.buckets=[[32, 64], [64, 32, 17]]"])
    first, second = config.stages
    assert [(config.size_of(s), s.num_frames) for s in config.by_bucket(first)] == [((32, 64), 9)]
    shapes = [(config.size_of(s), s.num_frames) for s in config.by_bucket(second)]
    assert shapes == [((32, 64), 9), ((64, 32), 17)]
    child = write(tmp_path, "child.yaml", "extends: base.yaml\nstages: {b: {buckets: [[32, 64]]}}")
    assert load_config(child, ["stages.b.size=64"]).stages[1].buckets is None


def test_steps_follow_from_clips_and_the_global_batch_is_shared():
    stage = StageConfig(name="s", trains="joint", clips=100, global_batch=30)
    for processes, batch in ((1, 30), (3, 10)):
        resolved = stage.for_processes(processes)
        assert (resolved.steps, resolved.batch_size) == (4, batch)  # ceil(100 / 30)
    resolved = StageConfig(name="s", trains="joint", clips=100, batch_size=5).for_processes(4)
    assert (resolved.steps, resolved.batch_size, resolved.windows_per_step) == (5, 5, 20)
    for processes, most in ((4, 8), (7, 5), (30, 1), (64, 1)):
        resolved = stage.for_processes(processes)
        assert (resolved.steps, resolved.batch_size, resolved.windows_per_step) == (4, most, 30)
        assert resolved.for_processes(processes) == resolved


@pytest.mark.parametrize(
    "given, processes, batches",
    [
        ({"gradient_accumulation": 4}, 1, (4, 8)),  # the most windows of a process in 4 parts
        ({"gradient_accumulation": 4}, 10, (3, 1)),  # no more parts than windows
        ({"batch_size": 8}, 1, (4, 8)),
        ({"batch_size": 8}, 3, (2, 5)),  # 10 windows in 2 parts, not 8 and 2
        ({"batch_size": 8}, 4, (1, 8)),
        ({"batch_size": 8}, 64, (1, 1)),
    ],
)
def test_windows_at_once_and_parts_follow_from_the_global_batch(given, processes, batches):
    stage = StageConfig(name="s", trains="joint", steps=1, global_batch=30, **given)
    resolved = stage.for_processes(processes)
    assert (resolved.gradient_accumulation, resolved.batch_size) == batches
    assert resolved.windows_per_step == 30 and resolved.for_processes(processes) == resolved


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"steps": 1, "clips": 1}, "`steps` .1. and `clips` .1. are both given"),
        ({}, "neither `steps` nor `clips`"),
        ({"steps": 1, "strides": {1: 1}, "fps": 8}, "`strides` .* and `fps` .8. are both given"),
        ({"steps": 1, "strides": None}, "neither `strides` nor `fps`"),
        ({"steps": 1, "batch_size": None}, "neither `batch_size` nor `global_batch`"),
        ({"steps": 1, "size": [64, 8]}, "at least 16 pixels"),
        ({"steps": 1, "size": 64, "buckets": [[64, 64]]}, "`size` .64. and `buckets` .* are both given"),
        ({"steps": 1, "buckets": [[64]]}, "bucket 64 must be like 64x128"),
        ({"steps": 1, "buckets": [[64, 64, 1]]}, "at least 2 frames"),
        ({"steps": 1, "buckets": [[64, 96], [64, 96, 9]]}, "each shape must be given once"),
        (
            {"steps": 1, "tasks": {"leading": 1.0}, "buckets": [[64, 96, 3], [64, 64]]},
            "leading_frames is .1, 3.; it must lie within 1 to 2",
        ),
        ({"steps": 1, "strides": {1: 0.0}}, "not all 0"),
    ],
)
def test_a_stage_gives_exactly_one_of_each_pair(fields, message):
    with pytest.raises(ValueError, match=message):
        StageConfig(name="s", trains="joint", **fields)


def test_a_resolved_config_can_be_written_and_read_again(tmp_path):
    config = load_config(write(tmp_path, "base.yaml", BASE))
    for one in (config, config.for_processes(2)):
        assert RunConfig.model_validate_json(one.model_dump_json()) == one


@pytest.mark.parametrize(
    "change, message",
    [
        ("stages: []", "stages"),
        ("seeed: 1", "seeed: there is no such key .did you mean 'seed'.. .given: 1.; accepted are name"),
        ("learning_rate: 1", "did you mean 'stages.<name>.learning_rate'"),
        ("optimizer: {ema: 1}", "optimizer.ema: there is no such key"),
        ("stages: [{name: a, trains: joint, stps: 1}]", "stages.a.stps: there is no such key .did you mean 'steps'"),
        (
            "stages: [{name: a, trains: everything, steps: 1}]",
            "stages.a.trains.*'planner', 'transformer' or 'joint'.*everything",
        ),
        ("stages: [{name: a, trains: joint, steps: 1, reference_ratio: [0.6, 0.2]}]", "0 <= low <= high <= 1"),
        ("stages: [{name: a, trains: joint, steps: 1, tasks: {leading: 1}, leading_frames: [1, 9]}]", "within 1 to 8"),
        ("stages: [{name: a, trains: joint, steps: 1, strides: {0: 1}}]", "distances of at least 1"),
        ("stages: [{name: a, trains: joint, steps: 1, tasks: {random: 0}}]", "all task weights are 0"),
        (
            "stages: [{name: a, trains: joint, steps: 1}, {name: a, trains: joint, steps: 1}]",
            "each must be given once",
        ),
        ("stages: 3", "stages is 3; give a list"),
        ("extends: run.yaml", "extends itself: .*run.yaml -> .*run.yaml"),
        ("seed: [", "not YAML"),
    ],
)
def test_configurations_that_make_no_sense_are_refused_with_the_key(tmp_path, change, message):
    text = "name: x\nvae: v\ndata: {train: clips}\n"
    if "stages" not in change:
        text += "stages: [{name: a, trains: joint, steps: 1}]\n"
    path = write(tmp_path, "run.yaml", f"{text}{change}\n")
    with pytest.raises(ValueError, match=f"(?s)run.yaml.*{message}"):
        load_config(path)


@pytest.mark.parametrize(
    "override, message",
    [
        ("stages.bb.steps=1", "no stage 'bb' .did you mean 'b'..; the stages are a, b"),
        ("optimizer.ema_dekay=1", "override optimizer.ema_dekay=1: optimizer.ema_dekay.*did you mean 'ema_decay'"),
        ("optimizer.ema_decay=2", "override optimizer.ema_decay=2: optimizer.ema_decay: must be below 1 .given: 2"),
        ("seed", "not of the form key=value"),
        ("seed=[", "not YAML"),
    ],
)
def test_overrides_that_make_no_sense_are_refused_by_name(tmp_path, override, message):
    path = write(tmp_path, "base.yaml", BASE)
    with pytest.raises(ValueError, match=message):
        load_config(path, [override])


def test_the_file_that_made_the_mistake_is_named(tmp_path):
    write(tmp_path, "base.yaml", BASE.replace("size: 32", "size: 2"))
    child = write(tmp_path, "child.yaml", "extends: base.yaml\nname: child")
    with pytest.raises(
        ValueError,
        match="(?s)child.yaml is not a valid.*base.yaml: data.size: .*every side must be at least 16 pixels .given: 2.",
    ):
        load_config(child)


def test_a_missing_parent_is_named_with_the_file_that_extends_it(tmp_path):
    path = write(tmp_path, "run.yaml", "extends: other.yaml")
    with pytest.raises(ValueError, match="no configuration at .*other.yaml, which .*run.yaml extends"):
        load_config(path)


def test_a_missing_configuration_is_named():
    with pytest.raises(ValueError, match="no configuration at nowhere.yaml"):
        load_config("nowhere.yaml")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("tiny-*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_are_valid_and_end_with_temporal_attention(path):
    config = load_config(path)
    trains = [stage.trains for stage in config.stages]
    if config.init_from is None:
        assert trains[:4] == ["planner", "transformer", "joint", "joint"] and set(trains[4:]) <= {"joint"}
        assert config.stages[1].temporal_attention == "spatiotemporal"
    else:
        assert trains[-1] == "joint"
    assert config.stages[-1].temporal_attention == "temporal"


# SPEC 4, Fig. 4: trains, frames, fps, size, reference ratios, million clips seen, attention across frames
FIGURE_4 = [
    ("planner", 4, 8, 256, (0.65, 1.0), 200, None),
    ("transformer", 4, 8, 256, (0.45, 1.0), 20, "spatiotemporal"),
    ("transformer", 4, 4, 256, (0.35, 1.0), 80, "spatiotemporal"),
    ("transformer", 9, 8, 256, (0.35, 1.0), 40, "spatiotemporal"),
    ("joint", 9, 8, 256, (0.35, 1.0), 75, "spatiotemporal"),
    ("joint", 9, 8, 512, (0.15, 0.6), 40, "spatiotemporal"),
    ("joint", 17, 8, 512, (0.06, 0.3), 40, "temporal"),
    ("joint", 17, 8, 768, (0.06, 0.3), 20, "temporal"),
    ("joint", 17, 8, 1024, (0.06, 0.3), 5, "temporal"),
]


@pytest.mark.parametrize("name", ["mardini_s_st", "mardini_l_st", "mardini_s_t", "mardini_l_t"])
def test_the_papers_configurations_are_figure_4_to_the_letter(name):
    config = load_config(CONFIGS / f"{name}.yaml")
    expected = FIGURE_4[:6] if name.endswith("_st") else FIGURE_4
    rows = [
        (stage.trains, stage.num_frames, stage.fps, stage.size, stage.reference_ratio, stage.clips / 1e6,
         None if stage.trains == "planner" else stage.temporal_attention)
        for stage in config.stages
    ]  # fmt: skip
    assert rows == expected
    assert config.preset == config.name == name.replace("_", "-")
    assert {(s.learning_rate, s.final_learning_rate, s.warmup_steps, s.planning_dropout) for s in config.stages} == {
        (1.4e-4, 0.0, 6000, 0.1)
    }
    assert [s.global_batch for s in config.stages] == ([1024] * 5 + [720, 384, 176, 96])[: len(expected)]
    assert config.optimizer.name == "adamw" and config.data.planner_downscale == 4
    preset = load_preset(config.preset)
    assert {"pretrained_model_name_or_path": config.vae, "subfolder": config.vae_subfolder} == preset["vae"]


@pytest.mark.parametrize("kind", ["st", "t"])
def test_the_last_fine_tune_is_a_short_stage_more_of_the_same_run(kind):
    before, config = (load_config(CONFIGS / f"{name}_{kind}.yaml") for name in ("mardini_l", "dynamic"))
    *stages, last = config.stages
    assert config.name == before.name and stages == before.stages
    assert 10_000 <= last.steps <= 20_000  # SPEC 3
    shapes = [config.size_of(shape) for shape in config.by_bucket(last)]
    assert shapes[0] == config.size_of(stages[-1])
    assert len(set(shapes)) == 10 and all(side % 32 == 0 for shape in shapes for side in shape)
    assert {(2 * height, 2 * width) for height, width in shapes[5:]} == set(shapes[:5])


def test_the_reference_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == reference(), "run `python -m training.config.reference`"


def test_defaults_are_found_by_dotted_key():
    assert default_of("optimizer.beta2") == 0.99 and default_of("stages.any.off_centre") == 0.0
    assert default_of("stages.any.tasks.random") == 1.0 and default_of("stages.any.reference_ratio") == [0.35, 1.0]
    for key in ("data.train", "stages.any.strides.2", "stages.any.windows_per_step", "lora", "nothing"):
        assert default_of(key) is None


def test_leading_frames_matter_only_where_leading_frames_are_kept():
    stage = {"name": "short", "trains": "joint", "steps": 1, "num_frames": 3}
    assert StageConfig(**stage).leading_frames == (1, 3)  # the default, which three frames cannot have
    with pytest.raises(ValueError, match="leading_frames is .1, 3.; it must lie within 1 to 2"):
        StageConfig(**stage, tasks={"random": 0.5, "leading": 0.5})


def test_stages_that_share_a_part_of_their_file_are_changed_apart(tmp_path):
    text = "name: a\ndata: {train: clips}\nvae: vae\nstages:\n"
    text += "  - &part {name: one, trains: joint, steps: 1, tasks: {random: 1.0}}\n  - {<<: *part, name: two}\n"
    (tmp_path / "a.yaml").write_text(text)
    one, two = load_config(tmp_path / "a.yaml", ["stages.two.tasks.random=0.5"]).stages
    assert (one.tasks.random, two.tasks.random) == (1.0, 0.5)
