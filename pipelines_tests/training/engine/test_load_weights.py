"""Weights that a run starts from: safetensors, whole, and where the configuration says."""

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from diffusers_mardini import AutoencoderPatchBasis
from pipelines_tests.training.test_train_mardini import make_config, make_run
from training.engine.models import load_vae, make_models, start_from


def make_kl() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",)
    )  # fmt: skip


@pytest.mark.parametrize("subfolder", [None, "vae"])
@pytest.mark.parametrize("make", [make_kl, lambda: AutoencoderPatchBasis(block_out_channels=(8,) * 4)])
def test_a_pickled_autoencoder_is_refused_with_the_way_to_convert_it(tmp_path, make, subfolder):
    vae, folder = make(), tmp_path / (subfolder or "")
    vae.save_pretrained(folder, safe_serialization=False)
    assert not list(folder.glob("*.safetensors"))
    with pytest.raises(
        ValueError, match="(?s)not read, since they can run code.*convert it once: python -c"
    ) as refused:
        load_vae(str(tmp_path), subfolder)
    program = str(refused.value).split('python -c "')[1].partition('"')[0]
    exec(program)  # what it says works
    assert torch.equal(next(load_vae(str(tmp_path), subfolder).parameters()), next(vae.parameters()))


def test_a_pickled_pipeline_is_no_start(tmp_path):
    config = make_config()
    models = make_models(config)
    models["planner"].save_pretrained(tmp_path / "planner", safe_serialization=False)
    with pytest.raises(ValueError):
        start_from(str(tmp_path), {"planner": models["planner"]})


def test_a_start_in_several_files_is_read_from_all_of_them(tmp_path):
    trained, models = make_models(make_config(seed=1)), make_models(make_config())
    for name in ("planner", "transformer"):
        trained[name].save_pretrained(tmp_path / name, max_shard_size="4KB")
    assert len(list((tmp_path / "planner").glob("*.safetensors"))) > 1
    start_from(str(tmp_path), {name: models[name] for name in ("planner", "transformer")})
    expected = dict(trained.named_parameters())
    for name, parameter in models.named_parameters():
        assert torch.equal(parameter, expected[name]) != name.startswith("head."), name


def test_weights_that_lack_a_tensor_are_refused(tmp_path):
    make_kl().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors.pop("quant_conv.weight")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ValueError, match="lack 1 tensors, the first is 'quant_conv.weight'"):
        load_vae(str(tmp_path))


@pytest.mark.parametrize("name", ["nothing", "empty", "cut", "config"])
def test_what_is_no_autoencoder_is_named(tmp_path, name):
    folder = tmp_path / name
    if name != "nothing":
        make_kl().save_pretrained(folder)
        weights = folder / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[: 0 if name == "empty" else 1000 if name == "cut" else None])
    if name == "config":
        (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=f"`vae`. is '{folder}'"):
        load_vae(str(folder))


def test_a_start_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="`init_from` is '.*none', whose planner cannot be read"):
        make_run(tmp_path / "run", make_config(init_from=str(tmp_path / "none")))
