"""A pipeline out of any checkpoint of a run, and what a run that is stopped leaves."""

import pytest
import torch
from safetensors.torch import load_file

from diffusers_mardini import MarDiniPipeline
from pipelines_tests.training.test_train_mardini import make_config, make_run, make_vae
from pipelines_tests.training.test_train_mardini_lora import base_folder, make_adapter_config
from training import export as program
from training.engine.adapter import adapter_loaded
from training.engine.checkpoint import list_checkpoints
from training.export import export
from training.stopping import Stopped, StopRequest


class AtStep(StopRequest):
    """A signal after a step."""

    def __init__(self, run, step: int):
        super().__init__(run.folder)
        self.run, self.step = run, step

    @property
    def reason(self) -> str | None:
        return "signal SIGINT" if self.run.global_step + 1 == self.step else None


def stop(folder, config, step: int):
    """Stop a run after a step; leave the files that `train` writes."""
    run = make_run(folder, config)
    with pytest.raises(Stopped, match="SIGINT"):
        run.train(AtStep(run, step))
    (folder / "config.json").write_text(config.model_dump_json())
    return run


def test_a_stopped_run_leaves_a_pipeline_and_any_checkpoint_becomes_one(tmp_path, capsys):
    make_vae().save_pretrained(tmp_path / "vae")
    run = stop(tmp_path / "run", make_config(vae=str(tmp_path / "vae"), keep_checkpoints=10), 5)
    stopped = MarDiniPipeline.from_pretrained(run.folder / "stopped" / "pipeline")
    assert f"lies in {run.folder / 'stopped' / 'pipeline'}" in capsys.readouterr().out

    program.main([str(run.folder)])
    output = run.folder / "exports" / "step-00000005"
    assert str(output) in capsys.readouterr().out
    exported = MarDiniPipeline.from_pretrained(output)
    assert exported.transformer.config.temporal_attention == "spatiotemporal"  # of the stage that was stopped
    for name in ("planner", "transformer", "vae"):
        ours, theirs = getattr(exported, name).state_dict(), getattr(stopped, name).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)

    earlier = MarDiniPipeline.from_pretrained(export(run.folder, tmp_path / "earlier", 2))
    averages = load_file(list_checkpoints(run.folder / "checkpoints")[0] / "ema.safetensors")
    torch.testing.assert_close(earlier.planner.norm_out.weight, averages["planner.norm_out.weight"])
    assert earlier.config.planner_downscale == 2


def test_what_cannot_be_exported_is_said(tmp_path):
    run = stop(tmp_path / "run", make_config(vae=str(tmp_path / "vae")), 2)
    with pytest.raises(ValueError, match="no checkpoint of step 7; it has 2"):
        export(run.folder, step=7)
    with pytest.raises(ValueError, match="there is no such folder; give that of an autoencoder"):
        export(run.folder)
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="exists and is no export"):
        export(run.folder, tmp_path / "other")
    with pytest.raises(SystemExit, match=r"error: .*no config\.json"):
        program.main([str(tmp_path)])
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text(make_config().model_dump_json())
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        export(tmp_path / "new")


def test_an_adapter_is_exported_as_one(tmp_path):
    run = stop(tmp_path / "run", make_adapter_config(), 3)
    output = export(run.folder)
    assert sorted(path.name for path in output.iterdir()) == ["pytorch_lora_weights.safetensors"]
    pipe = MarDiniPipeline.from_pretrained(base_folder())
    with adapter_loaded(pipe, output):
        assert pipe.get_list_adapters()
    stopped = load_file(run.folder / "stopped" / "adapter" / "pytorch_lora_weights.safetensors")
    exported = load_file(output / "pytorch_lora_weights.safetensors")
    assert all(torch.equal(stopped[key], exported[key]) for key in stopped)
