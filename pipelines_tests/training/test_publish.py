"""A checkpoint out of a finished run: the pipeline, and a card that repeats what was recorded."""

import json
import re
import shutil

import pytest
import torch
import yaml
from PIL import Image

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.cards import render_model_card
from diffusers_mardini.hub import plan_upload
from diffusers_mardini.measured_sampling import MeasuredSampling
from pipelines_tests.training.test_train_mardini import make_run
from pipelines_tests.training.test_train_mardini_lora import base_folder, make_adapter_config
from training import card as card_of_checkpoint
from training.card import facts_of, read_record, without_folders
from training.engine.adapter import adapter_loaded
from training.evaluation.methods import model_key
from training.evaluation.tables import COLUMNS
from training.publish import publish, resources_of, stages_of


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    made = make_run(folder)
    made.train()
    (folder / "config.json").write_text(made.config.model_dump_json())
    return folder


def make_sources(folder):
    row = {"method": "ours, 25 steps", **dict.fromkeys(COLUMNS, 0.4321)}
    (folder / "results.json").write_text(json.dumps({"command": "python -m training.evaluate x", "rows": [row]}))
    (folder / "card.yaml").write_text(
        yaml.safe_dump({"num_frames": 4, "data": "Noise.", "metrics_setting": "Two windows."})
    )
    return folder / "card.yaml", folder / "results.json"


def test_the_card_repeats_what_was_recorded(tmp_path, run):
    output = publish(run, *make_sources(tmp_path), tmp_path / "checkpoints" / "tiny")
    card = (output / "README.md").read_text()
    assert "| ours, 25 steps | 0.432 |" in card and "`python -m training.evaluate x`" in card and "Noise." in card
    assert "| planner | planner | 3 | 6 |" in card and "| joint | joint | 3 | 6 |" in card
    MarDiniPipeline.from_pretrained(output)
    publish(run, *make_sources(tmp_path), output)  # again: replaced whole
    assert [path.name for path in output.parent.iterdir()] == ["tiny"]


def test_steps_and_solver_that_were_measured_become_the_pipelines(tmp_path, run):
    sources, measured = make_sources(tmp_path), MeasuredSampling(10, "UniPCMultistepScheduler", 2)
    told = MarDiniPipeline.load_config(publish(run, *sources, tmp_path / "tiny", measured=measured))
    plain = MarDiniPipeline.load_config(publish(run, *sources, tmp_path / "plain"))
    assert MeasuredSampling.from_config(told) == measured and MeasuredSampling.from_config(plain) == MeasuredSampling()
    assert {**told, **plain} == {**told, "num_inference_steps": None, "solver": None, "anchors": None}


def test_an_adapter_is_published_with_its_base_and_what_the_file_says(tmp_path, monkeypatch):
    made = make_run(tmp_path / "run", make_adapter_config(lora={"rslora": True}))
    made.train()
    (made.folder / "config.json").write_text(made.config.model_dump_json())
    monkeypatch.chdir(tmp_path)
    card, results = make_sources(tmp_path)
    with pytest.raises(ValueError, match="an adapter has no steps"):
        publish(made.folder, card, results, tmp_path / "lora", measured=MeasuredSampling(10, "DDIMScheduler"))
    output = publish(made.folder, card, results, tmp_path / "checkpoints" / "lora", keep_record=True)
    assert sorted(path.name for path in output.iterdir()) == ["README.md", "pytorch_lora_weights.safetensors"]
    text = (output / "README.md").read_text()
    assert (
        f"base_model: {base_folder().name}\n" in text
        and str(base_folder()) not in text
        and "- lora\n" in text
        and "base_model_relation: adapter" in text
    )
    assert (
        "| planner | 2 | 2 | rsLoRA |" in text
        and "| joint | joint | 3 | 6 |" in text
        and "| ours, 25 steps | 0.432 |" in text
    )
    plan_upload(output, "somebody/lora")
    (output / "README.md").unlink()
    card_of_checkpoint.main([str(card), str(output)])  # again, without the run
    assert (output / "README.md").read_text() == text

    # The snippet runs as it stands, once the adapter's own name leads somewhere
    for name in ("first.png", "last.png"):
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    record = read_record(card)
    card.with_suffix(".json").write_text(json.dumps({k: v for k, v in record.items() if k != "base_model"}))
    base = str(base_folder())  # a name on the Hub, elsewhere
    card.write_text(yaml.safe_dump({"num_frames": 4, "path": str(output), "size": 32, "base_model": base}))
    card_of_checkpoint.main([str(card), str(output)])
    (snippet,) = re.findall(r"```python\n(.*?)```", (output / "README.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(compile(snippet, "snippet of a card", "exec"), names)
    assert names["pipe"].get_list_adapters() == {"planner": ["default_0"], "transformer": ["default_0"]}
    assert len(names["frames"]) == 4

    card.write_text(yaml.safe_dump({"num_frames": 4}))

    # Scores of the base alone, or of another adapter, are not this one's
    pipe = MarDiniPipeline.from_pretrained(base_folder())
    sampled_by, record = model_key(pipe), json.loads(results.read_text())
    with adapter_loaded(pipe, made.folder / "adapter"):
        adapted = model_key(pipe)["checkpoint"]
    for told in ({}, {"adapted": "0" * 64}, {"adapted": adapted}):
        results.write_text(json.dumps({**record, "sampled_by": {**sampled_by, **told}}))
        if told.get("adapted") != adapted:
            with pytest.raises(ValueError, match="scores of other weights than .*adapter: evaluate .* with --adapter"):
                publish(made.folder, card, results, tmp_path / "no")
    publish(made.folder, card, results, tmp_path / "yes")

    card.write_text(yaml.safe_dump({"base_model": "somebody/base"}))
    publish(made.folder, card, results, output)
    assert "LoRA weights for `somebody/base`" in (output / "README.md").read_text()
    with pytest.raises(ValueError, match="exists and is no adapter"):
        publish(made.folder, card, results, made.folder)


def test_with_its_record_kept_the_card_is_made_again_without_the_run(tmp_path, run):
    card, results = make_sources(tmp_path)
    output = publish(run, card, results, tmp_path / "tiny")
    assert not card.with_suffix(".json").exists()
    publish(run, card, results, output, keep_record=True)
    before = (output / "README.md").read_text()
    (output / "README.md").unlink()
    card_of_checkpoint.main([str(card), str(output)])
    assert (output / "README.md").read_text() == before


def test_scores_that_were_measured_since_replace_the_recorded_ones_if_they_are_the_checkpoints(tmp_path, run):
    card, results = make_sources(tmp_path)
    output = publish(run, card, results, tmp_path / "tiny", keep_record=True)
    before = (output / "README.md").read_text()
    record = json.loads(results.read_text())
    record["rows"][0] |= {"mid_ssim": 0.9, "intervals": {"mid_ssim": [0.8, 1.0]}}
    record["sampled_by"] = model_key(MarDiniPipeline.from_pretrained(output))
    results.write_text(json.dumps(record))
    card_of_checkpoint.main([str(card), str(output), "--results", str(results)])
    after = (output / "README.md").read_text()
    assert "| ours, 25 steps | 0.900 [0.800, 1.000] |" in after
    assert [a for a in after.splitlines() if "0.900" not in a] == [b for b in before.splitlines() if "0.432" not in b]
    assert read_record(card)["stages"] == stages_of(run)
    record["sampled_by"]["checkpoint"] = "0" * 64
    results.write_text(json.dumps(record))
    with pytest.raises(SystemExit, match="scores of other weights than .*evaluate that folder"):
        card_of_checkpoint.main([str(card), str(output), "--results", str(results)])
    assert (output / "README.md").read_text() == after


def test_a_run_that_went_on_from_a_checkpoint_has_its_earlier_stages_from_the_record(tmp_path, run):
    copy = shutil.copytree(run, tmp_path / "run")
    lines = [
        line for line in (copy / "metrics.jsonl").read_text().splitlines() if json.loads(line)["stage"] == "joint"
    ]
    (copy / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match="no record of stage 'planner'"):
        stages_of(copy, stages_of(run))  # it says nowhere that it went on from something
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "init_from": "checkpoints/tiny"}))
    assert stages_of(copy, stages_of(run))[:2] == stages_of(run)[:2]
    with pytest.raises(ValueError, match="no record of stage 'planner'"):
        stages_of(copy)
    card, results = make_sources(tmp_path)
    publish(run, card, results, tmp_path / "tiny", keep_record=True)
    publish(copy, card, results, tmp_path / "tiny", keep_record=True)
    record = read_record(card)
    assert [row["stage"] for row in record["stages"]] == ["planner", "transformer", "joint"] and "hours" not in record


def test_samples_are_copied_from_the_evaluation(tmp_path, run):
    card, results = make_sources(tmp_path)
    facts = yaml.safe_load(card.read_text())
    card.write_text(yaml.safe_dump({**facts, "samples": [{"file": "sheet_0.png", "caption": "Not chosen"}]}))
    with pytest.raises(ValueError, match="sheet_0.png, which are not in"):
        publish(run, card, results, tmp_path / "tiny")
    assert {path.name for path in tmp_path.iterdir()} == {"card.yaml", "results.json"}
    (tmp_path / "sheet_0.png").write_bytes(b"a picture")
    output = publish(run, card, results, tmp_path / "tiny")
    assert (output / "sheet_0.png").read_bytes() == b"a picture"
    assert "![Not chosen](sheet_0.png)" in (output / "README.md").read_text()


def test_hardware_and_hours_are_told_as_far_as_they_were_recorded(tmp_path):
    lines = [{"step": 1, "seconds": 1800.0}, {"step": 2, "seconds": 2700.0}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert resources_of(tmp_path) == {"hours": 1.25}
    start = {"processes": 2, "threads": 1, "device": "cpu", "processor": "Z80", "cores": 2, "mixed_precision": "no"}
    gpu = {**start, "processes": 1, "device": "H100", "mixed_precision": "bf16"}
    (tmp_path / "starts.jsonl").write_text("\n".join(map(json.dumps, [start, start, gpu])))
    assert (
        resources_of(tmp_path)["hardware"]
        == "2 processes of 1 thread on Z80, 2 cores; then 1 process, each on H100, bf16"
    )
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, [*lines, {"step": 3}])) + "\n")
    assert "hours" not in resources_of(tmp_path)


def test_a_fact_is_told_in_one_place(tmp_path):
    (tmp_path / "card.yaml").write_text("hours: 2\n")
    assert facts_of(tmp_path / "card.yaml", read_record(tmp_path / "card.yaml")) == {"hours": 2}
    (tmp_path / "card.json").write_text('{"hours": 3}')
    with pytest.raises(ValueError, match="gives hours, which the run recorded"):
        facts_of(tmp_path / "card.yaml", read_record(tmp_path / "card.yaml"))
    (tmp_path / "card.yaml").write_text("- hours\n")
    with pytest.raises(ValueError, match="holds a list; it has to be a mapping"):
        facts_of(tmp_path / "card.yaml", {})


def test_a_card_quotes_what_a_page_says(tmp_path, monkeypatch):
    monkeypatch.setattr("training.card.ROOT", tmp_path)
    page = "<!-- steering: begin -->\n{}\n<!-- steering: end -->\n<!-- pace: begin -->\nNot run yet.\n<!-- pace: end -->\n"
    block = "![roads](roads.png)\n\nTwo states.\n\n| obeyed |\n|---|\n| 99% |\n\n| other |\n|---|\n| 1 |"
    (tmp_path / "page.md").write_text(page.format(block))
    quotes = [{"heading": f"About {name}", "page": "page.md", "block": name} for name in ("steering", "pace")]
    card = tmp_path / "card.yaml"
    card.write_text(json.dumps({"quotes": quotes}))
    said = "Two states.\n\n| obeyed |\n|---|\n| 99% |"
    assert facts_of(card, {}) == {"sections": [{"heading": "About steering", "text": said}]}
    text = render_model_card({"name": "quoting", **facts_of(card, {})})
    assert f"## About steering\n\n{said}\n\n## " in text and "About pace" not in text
    for wrong, message in (
        ({"block": "colour"}, "needs one line '<!-- colour: begin -->'"),
        ({"page": "other.md"}, "quotes other.md, which this repository does not have"),
        ({"picture": "roads.png"}, "is none; give heading, page and block"),
    ):
        card.write_text(json.dumps({"quotes": [{**quotes[0], **wrong}]}))
        with pytest.raises(ValueError, match=message):
            facts_of(card, {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_of_other_weights_are_refused(tmp_path, run, dtype):
    card, results = make_sources(tmp_path)
    sampled_by = model_key(MarDiniPipeline.from_pretrained(run / "pipeline", dtype=dtype))
    record = json.loads(results.read_text())
    results.write_text(json.dumps({**record, "sampled_by": sampled_by}))
    publish(run, card, results, tmp_path / "out")
    results.write_text(json.dumps({**record, "sampled_by": {**sampled_by, "checkpoint": "0" * 64}}))
    with pytest.raises(ValueError, match="scores of other weights than .*pipeline: evaluate that folder"):
        publish(run, card, results, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_is_not_finished_or_not_ours_is_refused(tmp_path, run):
    sources = make_sources(tmp_path)
    with pytest.raises(ValueError, match="no finished pipeline"):
        publish(tmp_path, *sources, tmp_path / "out")
    (tmp_path / "precious").mkdir()
    with pytest.raises(ValueError, match="is no pipeline"):
        publish(run, *sources, tmp_path / "precious")
    records = (run / "metrics.jsonl").read_text().splitlines()
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "config.json").write_text((run / "config.json").read_text())
    (copy / "metrics.jsonl").write_text("\n".join(line for line in records if '"joint"' not in line))
    with pytest.raises(ValueError, match="no record of stage 'joint'"):
        stages_of(copy)


def test_the_card_has_the_verdict_and_intervals_and_no_folder_of_this_machine(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    card, results = make_sources(tmp_path)
    names = ("mid_ssim", "mid_psnr", "motion")
    scores = [("cross-fade", "baseline", 0.5), ("ours, 25 steps", "ours", 0.6)]
    rows = [
        {
            "method": method,
            "kind": kind,
            **dict.fromkeys(names, value),
            "intervals": {"mid_ssim": [value - 0.1, value]},
        }
        for method, kind, value in scores
    ]
    difference = {"method": "ours, 25 steps", "than": "cross-fade", "difference": {"mid_ssim": 0.1}}
    difference["intervals"] = {"mid_ssim": [0.05, 0.2]}
    rows[0]["motion"] = None  # as results.json has what is not a number
    command = f"python -m training.evaluate {tmp_path}/runs/a/pipeline /elsewhere/clips --weights=~/nets -o out"
    results.write_text(json.dumps({"command": command, "rows": rows, "differences": [difference]}))
    text = (publish(run, card, results, tmp_path / "tiny") / "README.md").read_text()
    assert "## Verdict\n\n- Better than every simple method: ours, 25 steps.\n" in text
    assert "| ours, 25 steps | 0.600 [0.500, 0.600] |" in text
    assert "`python -m training.evaluate runs/a/pipeline clips --weights=nets -o out`" in text
    assert str(tmp_path) not in text

    card.write_text(yaml.safe_dump({"data": f"Clips of {tmp_path / 'mine'}."}))
    with pytest.raises(ValueError, match="would name .*, a folder of this machine; take it out of"):
        publish(run, card, results, tmp_path / "tiny")


def test_paths_of_a_command_are_shortened_on_every_system():
    command = r"train C:\Users\me\clips '/home/me/my clips' data=/mnt/x 1/2 https://host/a somebody/model"
    assert without_folders(command) == "train clips 'my clips' data=x 1/2 https://host/a somebody/model"
