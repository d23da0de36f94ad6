"""Configurations and cards: numbers are finite, booleans are booleans, names are not paths."""

import json

import pytest

from training.card import facts_of
from training.config.layers import load_config
from training.config.schema import AdapterConfig, RunConfig, StageConfig
from training.config.strict import check_name
from training.train_autoencoder import AutoencoderTrainingConfig


BASE = """
name: base
vae: v
data: {train: clips, size: 32}
stages: [{name: a, trains: joint, steps: 1, strides: {1: 1.0}}]
"""


@pytest.fixture
def base(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE)
    return tmp_path / "base.yaml"


@pytest.mark.parametrize(
    "override, message",
    [
        ("data.flip=true", "data.flip: .*true is a boolean; give a number"),
        ("stages.a.steps=yes", "stages.a.steps: .*true is a boolean"),
        ("stages.a.off_centre=false", "stages.a.off_centre: .*false is a boolean"),
        ("stages.a.size=[64, true]", "stages.a.size: .*true is a boolean"),
        ("stages.a.strides={1: true}", "stages.a.strides: .*true is a boolean"),
        ("stages.a.strides={true: 1}", "stages.a.strides: .*true is a boolean"),
        ("stages.a.tasks={leading: true}", "stages.a.tasks.leading: .*true is a boolean"),
        ("gradient_checkpointing=1", "gradient_checkpointing: .*1 is not a boolean; give true or false"),
        ("anyway='true'", "anyway: .*'true' is text; give true or false"),
        ("stages.a.compile='true'", "stages.a.compile: give false, true or 'step'"),
        ("stages.a.compile=1", "stages.a.compile: .*1 is not a boolean; give true or false"),
        ("stages.a.strides={1: .nan}", "stages.a.strides: .*nan is not finite"),
        ("stages.a.strides={1: .inf}", "stages.a.strides: .*inf is not finite"),
        ("stages.a.reference_ratio=[.nan, 1]", "stages.a.reference_ratio: .*nan is not finite"),
        ("stages.a.final_learning_rate=.nan", "final_learning_rate: .*nan is not finite"),
        ("stages.a.final_learning_rate=1", "final_learning_rate is 1, above learning_rate"),
        ("stages.a.learning_rate=1e999", "learning_rate: .*inf is not finite"),
        ("stages.a.learning_rate=nan", "learning_rate: .*'nan' is text"),
        (f"stages.a.learning_rate={10**400}", "learning_rate: .*is not finite"),
        ("stages.a.timestep_shift=-.inf", "timestep_shift: .*-inf is not finite"),
        ("planner.eps=.nan", "planner: .*nan is not finite"),
        ("scheduler.sizes=[1, {a: .inf}]", "scheduler: .*inf is not finite"),
        ("stages.a.steps='5'", "stages.a.steps: .*'5' is text; give a number, without quotes"),
        ("max_hours=1:30", "max_hours: .*'1:30' is text"),
        ("stages.a.steps=010", "stages.a.steps: .*'010' is text"),
        (f"seed={2**64}", "seed: must be below"),
        ("lora.rank=true", "lora.rank: .*true is a boolean"),
        ("optimizer.ema_decay=.nan", "optimizer.ema_decay: .*nan is not finite"),
    ],
)
def test_values_that_are_not_numbers_or_booleans_are_refused_with_their_key(base, override, message):
    with pytest.raises(ValueError, match=f"(?s)override .*{message}"):
        load_config(base, [override])


def test_numbers_are_read_as_they_are_written(base):
    given = [
        "stages.a.learning_rate=3e-4",
        "stages.a.steps=1e3",
        "planner.eps=1e-6",
        "data.flip=1",
        "save_dtype=bfloat16",
    ]
    config = load_config(base, given)
    stage = config.stages[0]
    assert (stage.learning_rate, stage.steps, config.planner, config.data.flip) == (3e-4, 1000, {"eps": 1e-6}, 1.0)
    base.write_text(f"{BASE}optimizer: {{ema_decay: 9e-1}}\nmax_hours: 1_0.5\ngradient_checkpointing: on\n")
    config = load_config(base)
    assert (config.optimizer.ema_decay, config.max_hours, config.gradient_checkpointing) == (0.9, 10.5, True)
    assert StageConfig(name="a", trains="joint", steps=1, learning_rate="3e-4").learning_rate == 3e-4  # PyYAML's text


def test_a_written_configuration_can_be_read_as_json_and_as_yaml(base):
    config = load_config(base, ["stages.a.strides={1: 0.5, 2: 0.5}"])
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    base.write_text(config.model_dump_json())  # JSON is YAML, with text for keys
    assert load_config(base) == config


@pytest.mark.parametrize("name", [
    "", " ", "../../x", "a/b", "a\\b", "..", ".", ".hidden", "a.", "a ", " a", "con", "NUL", "nul.txt", "COM1", "a:b",
    "a\nb",
    "a*", "a?", 'a"', "a" * 101, "ä" * 51, "/abs", "C:\\x",
])  # fmt: skip
def test_a_name_is_no_path(base, name):
    with pytest.raises(ValueError):
        check_name(name)
    given = json.dumps(name)
    with pytest.raises(ValueError, match="(?s)override name=.*: name: "):
        load_config(base, [f"name={given}"])
    base.write_text(BASE.replace("{name: a,", f"{{name: {given},"))
    with pytest.raises(ValueError, match=r"(?s)base.yaml: stages\..*name: "):
        load_config(base)


@pytest.mark.parametrize("name", ["tiny-carracing", "v1.5", "my run", "a" * 100, "größe", "console", "task_2", "-x"])
def test_an_ordinary_name_stays(base, name):
    assert load_config(base, [f"name={json.dumps(name)}"]).name == name


def test_stages_that_would_share_a_folder_on_windows_are_refused(base):
    with pytest.raises(ValueError, match="each must be given once, and they must differ in more than capitals"):
        base.write_text(BASE.replace("stages: [", "stages: [{name: A, trains: planner, steps: 1}, "))
        load_config(base)


@pytest.mark.parametrize("name", ["{a: b}", "[1]", "3", "true", "2024-01-01", "null"])
def test_a_name_that_is_no_word_is_refused_with_the_file(base, name):
    base.write_text(BASE.replace("{name: a,", f"{{name: {name},"))
    with pytest.raises(ValueError, match="(?s)base.yaml.*name"):
        load_config(base)


def test_the_autoencoders_and_the_adapters_configurations_are_as_strict(tmp_path):
    path = tmp_path / "vae.yaml"
    for line, message in (
        ("steps: true", "true is a boolean"),
        ("latent_noise: .nan", "nan is not finite"),
        ("width: '9'", "'9' is text"),
        ("train_encoder: 1", "1 is not a boolean"),
        ("output: d", "'output' is given twice"),
    ):
        path.write_text(f"clips: a\nheld_out: b\noutput: c\n{line}\n")
        with pytest.raises(ValueError, match=f"(?s)vae.yaml.*{message}"):
            AutoencoderTrainingConfig.from_yaml(path)
    for fields in ({"rank": True}, {"dropout": float("nan")}, {"rslora": 1}, {"alpha": "8"}):
        with pytest.raises(ValueError, match="boolean|finite|text"):
            AdapterConfig(**fields)


@pytest.mark.parametrize(
    "line, message",
    [("hours: .nan", "hours: nan is not finite"), ("num_frames: true", "num_frames: true is a boolean"),
     ("parameters: {vae: .inf}", "parameters: inf is not finite"), ("name: again", "'name' is given twice, in line 1 and in line 2"),
     ("\tsize: 1", "line 2.*indent with spaces")],
)  # fmt: skip
def test_a_card_is_as_strict_and_names_its_file(tmp_path, line, message):
    (tmp_path / "card.yaml").write_text(f"name: tiny\n{line}\n")
    with pytest.raises(ValueError, match=f"card.yaml.*{message}"):
        facts_of(tmp_path / "card.yaml", {})
