"""Weights are read from safetensors alone and whole, in pipelines, their parts, modular pipelines and uploads."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import safetensors.torch
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

from diffusers_mardini import (
    AutoencoderPatchBasis,
    MarDiniModularPipeline,
    MarDiniPipeline,
    MarDiniPlannerTransformer3DModel,
    MarDiniTransformer3DModel,
)
from diffusers_mardini.hub import plan_upload
from diffusers_mardini.loaders import allow_single_files
from pipelines_tests.hub_server import running_hub
from pipelines_tests.tiny_pipeline import tiny_pipeline


WEIGHTS = "diffusion_pytorch_model.safetensors"
PARTS = {
    "planner": MarDiniPlannerTransformer3DModel,
    "transformer": MarDiniTransformer3DModel,
    "vae": AutoencoderPatchBasis,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved_kl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved_kl") / "tiny"
    tiny_pipeline("kl").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


@pytest.fixture
def kl_folder(saved_kl, tmp_path):
    return Path(shutil.copytree(saved_kl, tmp_path / "kl"))


def pickle_weights(part: Path, name: str = "diffusion_pytorch_model.bin", weights: str = WEIGHTS) -> None:
    """Puts a pickle of the same tensors in the place of a part's safetensors."""
    torch.save(safetensors.torch.load_file(part / weights), part / name)
    (part / weights).unlink()


def change_weights(part: Path, change) -> None:
    tensors = safetensors.torch.load_file(part / WEIGHTS)
    change(tensors)
    safetensors.torch.save_file(tensors, part / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("suffix", ["bin", "pt", "ckpt"])
def test_pickles_are_refused_with_the_way_to_convert_them(folder, part, suffix):
    pickle_weights(folder / part, f"diffusion_pytorch_model.{suffix}")
    told = r"is a pickle.*only .safetensors is read.*safetensors.torch.save_file\("
    sentence = rf"{part}.diffusion_pytorch_model.{suffix} {told}"
    with pytest.raises(ValueError, match=sentence):
        MarDiniPipeline.from_pretrained(folder)
    with pytest.raises(ValueError, match=sentence):
        PARTS[part].from_pretrained(folder, subfolder=part)
    with pytest.raises(ValueError, match=sentence):
        PARTS[part].from_pretrained(folder / part)
    with pytest.raises(ValueError, match=sentence):
        MarDiniModularPipeline.from_pretrained(folder).load_components()


def test_the_generic_loader_unpickles_no_autoencoder_as_the_card_calls_it(kl_folder):
    card = Path("src/diffusers_mardini/templates/model_card.md").read_text(encoding="utf-8")
    assert '"{{ path }}",\n    trust_remote_code=True,\n    use_safetensors=True,\n' in card
    pickle_weights(kl_folder / "vae")
    with pytest.raises(OSError, match="vae.*safetensors|safetensors.*vae"):
        DiffusionPipeline.from_pretrained(kl_folder, trust_remote_code=True, use_safetensors=True)


def test_the_sentence_converts_what_it_refuses(folder, monkeypatch):
    pickle_weights(folder / "planner")
    with pytest.raises(ValueError) as error:
        MarDiniPipeline.from_pretrained(folder)
    code = str(error.value).partition("with `")[2].rstrip("`")
    exec(code, {"safetensors": safetensors, "torch": torch, "file": folder / "planner/diffusion_pytorch_model.bin"})
    MarDiniPipeline.from_pretrained(folder)


def test_pickles_of_an_autoencoder_of_diffusers_are_refused(kl_folder):
    pickle_weights(kl_folder / "vae")
    with pytest.raises(ValueError, match="is a pickle"):
        MarDiniPipeline.from_pretrained(kl_folder)
    with pytest.raises(ValueError, match="is a pickle"):
        MarDiniModularPipeline.from_pretrained(kl_folder).load_components()
    given = tiny_pipeline("kl").vae
    assert MarDiniPipeline.from_pretrained(kl_folder, vae=given).vae is given  # nothing of it is read


def test_pickles_of_a_variant_are_refused(folder):
    for part in ("planner", "vae"):
        shutil.copy(folder / part / WEIGHTS, folder / part / "diffusion_pytorch_model.small.safetensors")
    MarDiniPipeline.from_pretrained(folder, variant="small")
    pickle_weights(
        folder / "planner", "diffusion_pytorch_model.small.bin", "diffusion_pytorch_model.small.safetensors"
    )
    with pytest.raises(ValueError, match="diffusion_pytorch_model.small.bin is a pickle"):
        MarDiniPipeline.from_pretrained(folder, variant="small")
    with pytest.raises(ValueError, match="diffusion_pytorch_model.small.bin is a pickle"):
        MarDiniPlannerTransformer3DModel.from_pretrained(folder, subfolder="planner", variant="small")
    MarDiniPipeline.from_pretrained(folder)  # the plain weights are there


@pytest.mark.parametrize("vae", ["patch_basis", "kl"])
def test_pickled_shards_are_refused_whatever_their_index_is_called(tmp_path, vae):
    folder = tmp_path / "sharded"
    tiny_pipeline(vae).save_pretrained(folder, max_shard_size="4KB")
    for part in ("transformer", "vae"):
        copy = Path(shutil.copytree(folder, tmp_path / part))
        index = copy / part / f"{WEIGHTS}.index.json"
        shard = sorted((copy / part).glob("*-of-*.safetensors"))[0]
        pickle_weights(copy / part, shard.name.replace(".safetensors", ".bin"), shard.name)
        index.write_text(index.read_text().replace(shard.name, shard.name.replace(".safetensors", ".bin")))
        with pytest.raises(ValueError, match="names .*bin, but weights are read from .safetensors alone"):
            MarDiniPipeline.from_pretrained(copy)


def test_an_index_from_the_hub_names_no_pickles_either(tmp_path):
    tiny_pipeline().transformer.save_pretrained(tmp_path / "model", max_shard_size="50KB")
    index = tmp_path / "model" / f"{WEIGHTS}.index.json"
    shard = sorted((tmp_path / "model").glob("*-of-*.safetensors"))[0]
    pickle_weights(tmp_path / "model", "evil.bin", shard.name)
    index.write_text(index.read_text().replace(shard.name, "evil.bin"))
    with running_hub(tmp_path / "hub", token=None) as hub:
        hub.add_folder("somebody/model", tmp_path / "model")
        with pytest.raises(ValueError, match="evil.bin, but weights are read from .safetensors alone"):
            MarDiniTransformer3DModel.from_pretrained("somebody/model")


@pytest.mark.parametrize("vae", ["patch_basis", "kl"])
def test_a_repository_of_pickles_is_not_loaded(tmp_path, vae):
    tiny_pipeline(vae).save_pretrained(tmp_path / "tiny")
    pickle_weights(tmp_path / "tiny" / "vae")
    with running_hub(tmp_path / "hub", token=None) as hub:
        hub.add_folder("somebody/tiny", tmp_path / "tiny")
        with pytest.raises((ValueError, OSError), match="safetensors"):
            MarDiniPipeline.from_pretrained("somebody/tiny")
        assert not [request for request in hub.requests if request.endswith(".bin")]


def test_nobody_can_ask_for_pickles(folder, tmp_path):
    def load_model(path, **kwargs):
        return MarDiniTransformer3DModel.from_pretrained(path / "transformer", **kwargs)

    def load_modular(path, **kwargs):
        return MarDiniModularPipeline.from_pretrained(path).load_components(**kwargs)

    for load in (MarDiniPipeline.from_pretrained, load_model, load_modular):
        with pytest.raises(ValueError, match="`use_safetensors` is False"):
            load(folder, use_safetensors=False)
        load(folder, use_safetensors=True)
    with pytest.raises(ValueError, match="`safe_serialization` is False"):
        tiny_pipeline().save_pretrained(tmp_path / "new", safe_serialization=False)


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".PT"])
def test_single_files_that_are_pickles_are_refused(folder, tmp_path, monkeypatch, suffix):
    file = tmp_path / f"model{suffix}"
    torch.save(safetensors.torch.load_file(folder / "planner" / WEIGHTS), file)
    with pytest.raises(ValueError, match=f"model{suffix} is a pickle"):
        MarDiniPlannerTransformer3DModel.from_single_file(file, config=str(folder), subfolder="planner")
    with pytest.raises(ValueError, match="is a pickle"):
        MarDiniTransformer3DModel.from_single_file(f"https://huggingface.co/a/b/blob/main/model{suffix}?download=true")


@pytest.fixture
def single_files(monkeypatch):
    for model_class in (MarDiniPlannerTransformer3DModel, MarDiniTransformer3DModel):
        monkeypatch.setitem(SINGLE_FILE_LOADABLE_CLASSES, model_class.__name__, {})
        monkeypatch.setattr(diffusers, model_class.__name__, model_class, raising=False)
    allow_single_files()


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_a_single_file_that_lacks_a_tensor_is_refused_with_its_name(folder, single_files, low_cpu_mem_usage):
    change_weights(folder / "planner", lambda tensors: tensors.pop("mask_token"))
    file = folder / "planner" / WEIGHTS
    for origin in (str(file), file, safetensors.torch.load_file(file)):
        with pytest.raises(ValueError, match="lacks the tensor `mask_token` of MarDiniPlannerTransformer3DModel"):
            MarDiniPlannerTransformer3DModel.from_single_file(
                origin, config=str(folder), subfolder="planner", low_cpu_mem_usage=low_cpu_mem_usage
            )


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_a_part_that_lacks_tensors_is_refused_with_their_names(folder, low_cpu_mem_usage):
    kwargs = {} if low_cpu_mem_usage else {"low_cpu_mem_usage": False}
    change_weights(
        folder / "vae", lambda tensors: [tensors.pop(name) for name in ("to_latents.bias", "from_latents.bias")]
    )
    with pytest.raises(
        ValueError, match="lacks the 2 tensors `from_latents.bias`, `to_latents.bias` of AutoencoderPatchBasis"
    ):
        MarDiniPipeline.from_pretrained(folder, vae=AutoencoderPatchBasis.from_pretrained(folder / "vae", **kwargs))
    with pytest.raises(
        ValueError, match="lacks the 2 tensors `from_latents.bias`, `to_latents.bias` of AutoencoderPatchBasis"
    ):
        MarDiniPipeline.from_pretrained(folder)


@pytest.mark.parametrize("part", ["planner", "transformer"])
def test_both_models_name_the_tensors_that_are_missing(folder, part):
    change_weights(folder / part, lambda tensors: tensors.pop("next_token"))
    with pytest.raises(ValueError, match=f"{part}.* lacks the tensor `next_token` of {PARTS[part].__name__}"):
        MarDiniPipeline.from_pretrained(folder)
    with pytest.raises(ValueError, match="lacks the tensor `next_token`"):
        PARTS[part].from_pretrained(folder / part)


def test_a_configuration_of_more_layers_than_the_file_has_is_refused(folder):
    config = folder / "transformer/config.json"
    config.write_text(config.read_text().replace('"num_layers": 2', '"num_layers": 3'))
    with pytest.raises(ValueError, match=r"lacks the \d+ tensors `transformer_blocks.2.\S+`, .* and others"):
        MarDiniPipeline.from_pretrained(folder)


def test_a_configuration_of_fewer_layers_than_the_file_has_is_refused(folder):
    config = folder / "transformer/config.json"
    config.write_text(config.read_text().replace('"num_layers": 2', '"num_layers": 1'))
    with pytest.raises(ValueError, match=r"holds the \d+ tensors `transformer_blocks.1.\S+`, .* has no place"):
        MarDiniTransformer3DModel.from_pretrained(folder / "transformer")


def test_tensors_of_another_shape_are_refused_with_their_names(folder):
    change_weights(folder / "planner", lambda tensors: tensors.update(mask_token=torch.zeros(3)))
    with pytest.raises(ValueError, match="mask_token"):
        MarDiniPipeline.from_pretrained(folder)


def test_an_autoencoder_of_diffusers_that_lacks_a_tensor_is_refused_with_its_name(kl_folder):
    change_weights(kl_folder / "vae", lambda tensors: tensors.pop("decoder.conv_out.bias"))
    with pytest.raises(ValueError, match="vae of .* lacks the tensor `decoder.conv_out.bias` of AutoencoderKL"):
        MarDiniPipeline.from_pretrained(kl_folder)
    with pytest.raises(ValueError, match="vae lacks the tensor `decoder.conv_out.bias` of AutoencoderKL"):
        MarDiniModularPipeline.from_pretrained(kl_folder).load_components()


def test_the_report_of_diffusers_is_still_given(folder):
    model, report = MarDiniTransformer3DModel.from_pretrained(folder / "transformer", output_loading_info=True)
    assert isinstance(model, MarDiniTransformer3DModel) and report["missing_keys"] == []


@pytest.mark.parametrize(
    "path, told",
    [
        ("/no/such/folder", "there is no folder .*no.such.folder; give"),
        ("./nothing", "there is no folder nothing"),
        ("~/nothing-there", "there is no folder .*nothing-there"),
        ("a/b/c", "there is no folder a.b.c"),
        (Path("/no/such/folder"), "there is no folder"),
    ],
)
def test_a_folder_that_is_not_there_is_said_to_be_none(path, told, monkeypatch):
    for load in (
        MarDiniPipeline.from_pretrained,
        MarDiniTransformer3DModel.from_pretrained,
        AutoencoderPatchBasis.from_pretrained,
    ):
        with pytest.raises(ValueError, match=told):
            load(path)


def test_a_file_is_no_folder(folder):
    with pytest.raises(ValueError, match="model_index.json is a file; give its folder"):
        MarDiniPipeline.from_pretrained(folder / "model_index.json")


def test_the_home_folder_may_be_written_short(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    assert isinstance(MarDiniPipeline.from_pretrained("~/tiny"), MarDiniPipeline)


def test_an_id_that_the_hub_does_not_know_is_no_folder_either(tmp_path):
    with (
        running_hub(tmp_path / "hub", token=None),
        pytest.raises(OSError, match="there is no folder somebody/nothing, and from the Hub"),
    ):
        MarDiniPipeline.from_pretrained("somebody/nothing")


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda tensors: tensors.pop("next_token"), "lacks the tensor `next_token` of MarDiniTransformer3DModel"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "holds the tensor `more` for which"),
        (
            lambda tensors: tensors.update(next_token=torch.zeros(3)),
            r"`next_token` is shaped \(3,\), and \(32,\) by config.json",
        ),
    ],
)  # fmt: skip
def test_weights_that_are_not_whole_are_not_sent(folder, change, told):
    change_weights(folder / "transformer", change)
    with pytest.raises(ValueError, match=f"transformer/{WEIGHTS}: {told}"):
        plan_upload(folder, "somebody/tiny")


def test_a_configuration_that_makes_no_model_is_not_sent(kl_folder):
    plan_upload(kl_folder, "somebody/tiny")
    config = kl_folder / "vae/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "norm_num_groups": 3}))
    with pytest.raises(ValueError, match="vae/config.json: no AutoencoderKL can be made from it"):
        plan_upload(kl_folder, "somebody/tiny")
