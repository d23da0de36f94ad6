"""Cards say what is known and nothing else, and what they tell a reader to type works."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from diffusers_mardini import MarDiniPipeline, cli
from diffusers_mardini.cards import (
    FACTS,
    card_metadata,
    card_of_folder,
    markdown_table,
    read_facts,
    render_model_card,
    retarget_card,
    write_model_card,
)
from diffusers_mardini.video_io import read_video
from pipelines_tests.hub_server import running_hub
from pipelines_tests.tiny_pipeline import tiny_pipeline


ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS = sorted(path.parent for path in (ROOT / "checkpoints").glob("*/README.md"))
FULL = {
    "name": "mardini-test",
    "path": "checkpoints/mardini-test",
    "num_frames": 9,
    "fps": 12.5,
    "size": 64,
    "description": "A model for tests.",
    "license": "apache-2.0",
    "window": "9 frames of 64x64 pixels",
    "sampling": "7 steps of some solver",
    "anchors": 3,
    "samples": [
        {"file": "sheet.png", "caption": "Frames 0 and 8 given"},
        {"file": "clip.mp4", "caption": "One: window"},
    ],
    "conditions": [{"condition": "action", "channels": "3", "unit": "shares"}],
    "parameters": {"planner": 1000, "transformer": 234},
    "data": "Squares that move.",
    "stages": [{"stage": "joint", "steps": 10}, {"stage": "swap", "steps": 5}],
    "hardware": "2 cores",
    "hours": 1.256,
    "command": ["python -m a", "python -m b"],
    "metrics": [{"method": "ours", "mid SSIM": 0.5}],
    "verdict": ["Better than every simple method: ours."],
    "metrics_setting": "32 windows.",
    "sections": [{"heading": "Steering", "text": "It turns."}, {"heading": "Pace", "text": "It goes."}],
    "limits": ["Small.", "Square."],
    "citation": "Also cite the squares.",
}
ADAPTER = {"base_model": "somebody/base", "adapter": [{"part": "transformer", "rank": 4}]}


def metadata(card: str) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])


def snippets(card: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)


def run_python(snippet: str, **names) -> dict:
    exec(compile(snippet, "snippet of a card", "exec"), names)
    return names


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A working folder with the two files that snippets read."""
    monkeypatch.chdir(tmp_path)
    frames = np.random.default_rng(0).integers(0, 255, (2, 80, 64, 3), dtype=np.uint8)
    for name, frame in zip(("first.png", "last.png"), frames):
        Image.fromarray(frame).save(tmp_path / name)
    return tmp_path


def test_every_known_fact_is_on_the_card():
    assert {*FULL, *ADAPTER} == set(FACTS)
    card = render_model_card(FULL)
    for text in (
        "# mardini-test\n",
        "A model for tests.",
        "Trained on windows of 9 frames of 64x64 pixels.",
        "7 steps of some solver were measured to be as good as 25",
        "drift less with `pipe.extend(..., anchors=3)`",
        "| action | 3 | shares |",
        "| planner | 1,000 |",
        "| together | 1,234 |",
        "Squares that move.",
        "| joint | 10 |",
        "- trained on: 2 cores\n- hours, all stages together: 1.26\n",
        "python -m a\npython -m b",
        "## Verdict\n\n- Better than every simple method: ours.\n\n## Scores",
        "| ours | 0.500 |",
        "32 windows.",
        "## Steering\n\nIt turns.\n\n## Pace\n\nIt goes.\n\n## Limits\n\n- Small.\n- Square.",
        "Also cite the squares.",
        "@article{liu2024mardini,",
        'from_pretrained("checkpoints/mardini-test")',
        "num_frames=9, height=64, width=64)",
        "![Frames 0 and 8 given](sheet.png)",
        '<video controls loop src="clip.mp4"></video>\n\n*One: window*',
    ):
        assert text in card
    assert "[[" not in card and "{{" not in card and "\n\n\n" not in card


def test_the_hub_is_told_what_it_sorts_by():
    assert metadata(render_model_card(FULL)) == {
        "library_name": "diffusers",
        "pipeline_tag": "image-to-video",
        "tags": ["image-to-video", "video-interpolation", "mardini"],
        "license": "apache-2.0",
        "widget": [
            {"text": "Frames 0 and 8 given", "output": {"url": "sheet.png"}},
            {"text": "One: window", "output": {"url": "clip.mp4"}},
        ],
    }


def test_a_card_of_an_adapter_names_its_base_model():
    card = render_model_card({**FULL, **ADAPTER})
    told = metadata(card)
    assert told["base_model"] == "somebody/base" and told["base_model_relation"] == "adapter"
    assert told["tags"] == ["image-to-video", "video-interpolation", "mardini", "lora"]
    assert "LoRA weights for `somebody/base`" in card and "A checkpoint for" not in card
    assert "| transformer | 4 |" in card and "trust_remote_code" not in card


@pytest.mark.parametrize("fact, heading", [("data", "## Data"), ("metrics", "## Scores"), ("limits", "## Limits"),
                                           ("stages", "## Training"), ("parameters", "## Parameters"),
                                           ("license", "license:"), ("command", "## Command"), ("hours", "hours"),
                                           ("conditions", "## Conditions"),
                                           ("hardware", "trained on"), ("samples", "widget"), ("size", "height="),
                                           ("num_frames", "num_frames")])  # fmt: skip
def test_an_unknown_fact_leaves_out_its_section(fact, heading):
    assert heading in render_model_card(FULL)
    without = render_model_card({key: value for key, value in FULL.items() if key != fact})
    assert heading not in without
    assert without == render_model_card({**FULL, fact: None})


def test_a_card_of_a_name_alone_claims_nothing_else():
    card = render_model_card({"name": "x"})
    assert [line for line in card.splitlines() if line.startswith("## ")] == ["## Use", "## Citation"]
    assert 'from_pretrained("x")' in card and "image=first, last_image=last)" in card


def test_unknown_and_missing_facts_are_refused():
    with pytest.raises(ValueError, match="no place for colour.*limits"):
        render_model_card({**FULL, "colour": "blue"})
    with pytest.raises(ValueError, match="needs a name"):
        render_model_card({"num_frames": 9})
    with pytest.raises(ValueError, match="sound.wav cannot be shown; use .png"):
        render_model_card({"name": "x", "samples": [{"file": "sound.wav", "caption": "x"}]})
    for facts, told in (
        ({"sections": [{"heading": "Pace"}]}, "cannot be written; give a dict with"),
        ({"limits": "Small."}, "limits is 'Small.'; give list of sentences"),
        ({"hours": "two"}, "hours is 'two'; give number"),
        ({"parameters": 3}, "parameters is 3; give dict"),
        ({"samples": ["sheet.png"]}, 'give a dict with "file" and "caption"'),
    ):
        with pytest.raises(ValueError, match=told):
            render_model_card({"name": "x", **facts})


def test_what_a_pipelines_folder_tells(tmp_path):
    folder = tmp_path / "tiny"
    pipe = tiny_pipeline()
    pipe.save_pretrained(folder, max_shard_size="100KB")
    counts = {
        name: sum(tensor.numel() for tensor in getattr(pipe, name).state_dict().values())
        for name in ("planner", "transformer", "vae")
    }
    assert read_facts(folder) == {"parameters": counts, "size": 64}
    path = write_model_card(folder, {"num_frames": 9})
    assert path == folder / "README.md" and "# tiny\n" in path.read_text()
    assert f"| planner | {counts['planner']:,} |" in path.read_text()


def test_a_card_lists_what_frames_may_be_told(tmp_path):
    pipe = tiny_pipeline()
    action = {"names": ["steering", "gas"], "range": [[-1, 1], [0, 1]], "description": "the mean over an interval"}
    pipe.planner.add_conditions({"action": 2, "motion": 1}, {"action": action})
    pipe.transformer.add_conditions(
        {"action": 2, "rate": 1}, {"action": action, "rate": {"range": [0.04, 0.16], "unit": "s"}}
    )
    pipe.save_pretrained(tmp_path)
    assert read_facts(tmp_path)["conditions"] == [
        {
            "condition": "action",
            "channels": "2 (steering, gas)",
            "range": "-1 to 1, 0 to 1",
            "what it says": "the mean over an interval",
        },
        {"condition": "motion", "channels": "1"},
        {"condition": "rate", "channels": "1", "range": "0.04 to 0.16", "unit": "s"},
    ]
    card = card_of_folder(tmp_path, {})
    assert '`pipe(..., conditions={"name": array})`' in card and "| rate | 1 | 0.04 to 0.16 |" in card


def test_the_size_in_the_config_of_another_autoencoder_is_no_fact(tmp_path):
    tiny_pipeline("kl").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "vae/config.json").read_text())["sample_size"] == 32
    assert "size" not in read_facts(tmp_path)


def test_what_a_folder_of_lora_weights_tells(tmp_path):
    saved = {"transformer.r": 2, "transformer.lora_alpha": 4, "transformer.target_modules": ["to_v", "to_q"]}
    tensors = {
        "transformer.a.lora_A.weight": torch.ones(2, 8),
        "transformer.a.lora_B.weight": torch.ones(8, 2),
        "planner.a.lora_A.weight": torch.ones(1, 3),
    }
    save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors", {"lora_adapter_metadata": json.dumps(saved)})
    assert read_facts(tmp_path) == {
        "parameters": {"planner": 3, "transformer": 32},
        "adapter": [{"part": "transformer", "rank": 2, "alpha": 4, "targets": "to_q, to_v"}],
    }


def test_folders_that_tell_nothing_and_samples_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(ValueError, match="neither model_index.json nor pytorch_lora_weights.safetensors"):
        read_facts(tmp_path)
    (tmp_path / "model_index.json").write_text('{"planner": ["a", "b"]}')
    with pytest.raises(ValueError, match="is a whole pipeline; leave the fact base_model out"):
        write_model_card(tmp_path, {"base_model": "somebody/base"})
    with pytest.raises(ValueError, match="shows sheet.png, which"):
        write_model_card(tmp_path, {"samples": [{"file": "sheet.png", "caption": "x"}]})
    (tmp_path / "planner").mkdir()
    (tmp_path / "planner/model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        read_facts(tmp_path)


def test_tables_leave_empty_what_a_row_does_not_have():
    assert markdown_table([{"a": 1}, {"b": "x|y"}]).splitlines()[2:] == ["| 1 |  |", "|  | x\\|y |"]


def test_snippets_are_led_to_another_place_and_nothing_else_is():
    card, before = retarget_card(render_model_card(FULL), "you/mine")
    assert before == "checkpoints/mardini-test"
    assert card == render_model_card({**FULL, "path": "you/mine"})
    assert retarget_card(card, "you/mine") == (card, None)
    assert retarget_card("# By hand\n", "you/mine") == ("# By hand\n", None)
    lora, before = retarget_card(render_model_card({**FULL, **ADAPTER}), "you/lora")
    assert before == "checkpoints/mardini-test"
    assert 'from_pretrained("somebody/base")' in lora and 'load_lora_weights("you/lora")' in lora


def test_the_metadata_of_a_card_is_read_without_a_network(tmp_path):
    with running_hub(tmp_path) as hub:
        assert card_metadata(render_model_card(FULL))["library_name"] == "diffusers"
        assert card_metadata("# By hand\n") == {}
        assert hub.requests == []


def test_every_snippet_of_a_card_works_as_it_stands(pictures):
    """With the name of a repository, from a stand-in of the Hub, in a folder with the two pictures."""
    folder = pictures / "saved"
    tiny_pipeline().save_pretrained(folder)
    card = render_model_card({"name": "tiny", "path": "somebody/tiny", "num_frames": 4, **read_facts(folder)})
    with running_hub(pictures / "cache") as hub:
        hub.add_folder("somebody/tiny", folder)
        ours, generic = snippets(card, "python")
        names = run_python(ours)
        assert len(names["frames"]) == 4 and names["frames"][0].size == (64, 64)
        frames, fps = read_video("between.mp4")
        assert len(frames) == 4 and fps == 8
        Path("between.mp4").unlink()
        assert type(run_python(generic)["pipe"]) is MarDiniPipeline

        install, command = snippets(card, "bash")
        name = re.fullmatch(r"pip install \.   # in a checkout of ([\w-]+), which is not on PyPI yet\n?", install)[1]
        assert f'name="{name}"' in (ROOT / "setup.py").read_text()
        program, *arguments = command.split()
        result = CliRunner().invoke(cli.app, [*arguments, "--steps", "2", "--device", "cpu"])
        assert program == "mardini" and result.exit_code == 0, result.output
        assert len(read_video("between.mp4")[0]) == 9  # the command's own default


@pytest.mark.slow  # 25 steps of real models
@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda path: path.name)
def test_the_snippets_of_a_carried_card_work(folder, pictures):
    (pictures / "checkpoints").symlink_to(ROOT / "checkpoints")
    first, last = (Image.open(name).resize((64, 64)) for name in ("first.png", "last.png"))
    blocks = snippets((folder / "README.md").read_text(), "python")
    assert blocks
    for block in blocks:
        names = run_python(block, first=first, last=last)
        assert type(names["pipe"]) is MarDiniPipeline and len(names.get("frames", range(9))) == 9


def test_the_snippet_of_an_adapters_card_is_python():
    (snippet,) = snippets(render_model_card({**FULL, **ADAPTER}), "python")
    compile(snippet, "snippet of a card", "exec")
    assert snippet.index('MarDiniPipeline.from_pretrained("somebody/base")') < snippet.index(
        'pipe.load_lora_weights("checkpoints/mardini-test")'
    )


def test_the_snippet_of_an_adapters_card_works_as_it_stands(pictures):
    from peft import LoraConfig, get_peft_model_state_dict

    pipe = tiny_pipeline()
    pipe.save_pretrained(pictures / "base")
    pipe.transformer.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q"]))
    pipe.save_lora_weights(
        pictures / "lora",
        transformer_lora_layers=get_peft_model_state_dict(pipe.transformer),
        transformer_lora_adapter_metadata=pipe.transformer.peft_config["default"].to_dict(),
    )
    facts = {"base_model": "somebody/base", "path": "somebody/lora", "num_frames": 4, "size": 32}
    card = card_of_folder(pictures / "lora", facts)
    assert "| transformer | 2 | 4 | to_q |" in card
    with running_hub(pictures / "cache") as hub:
        hub.add_folder("somebody/base", pictures / "base")
        hub.add_folder("somebody/lora", pictures / "lora")
        (snippet,) = snippets(card, "python")
        names = run_python(snippet)
    assert list(names["pipe"].get_list_adapters()) == ["transformer"]
    assert len(names["frames"]) == 4 and names["frames"][0].size == (32, 32)


def test_a_card_tells_steps_that_were_measured_to_be_enough(tmp_path):
    pipe = tiny_pipeline()
    parts = {**pipe.components, "planner_downscale": pipe.config.planner_downscale}
    facts = {"num_inference_steps": 10, "solver": "UniPCMultistepScheduler", "anchors": 1}
    MarDiniPipeline(**parts, **facts).save_pretrained(tmp_path)
    assert read_facts(tmp_path)["sampling"] == "10 steps of UniPCMultistepScheduler"
    assert "`pipe.extend(..., anchors=1)`" in card_of_folder(tmp_path, {"name": "x"})
    assert "10 steps of UniPCMultistepScheduler were measured" in card_of_folder(tmp_path, {"name": "x"})
    pipe.save_pretrained(tmp_path)
    assert "measured" not in card_of_folder(tmp_path, {"name": "x"})


@pytest.mark.parametrize(
    "facts", [{"num_inference_steps": 10}, {"solver": "x"}, {"num_inference_steps": 0, "solver": "x"},
              {"num_inference_steps": 10, "solver": 3}, {"anchors": 0}, {"anchors": True}]
)  # fmt: skip
def test_measured_steps_that_are_none_are_refused(facts):
    pipe = tiny_pipeline()
    with pytest.raises(ValueError, match="`num_inference_steps` is|`solver` is|`anchors` is"):
        MarDiniPipeline(**pipe.components, **facts)


def test_a_variant_is_not_counted_once_more(tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path)
    once = read_facts(tmp_path)["parameters"]
    pipe.save_pretrained(tmp_path, variant="fp16")
    assert read_facts(tmp_path)["parameters"] == once
