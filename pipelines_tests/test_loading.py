"""Saving and loading, by our class and by diffusers' generic one, from a folder and from a stand-in of the Hub."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import AutoModel, DDIMScheduler, DiffusionPipeline
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
from diffusers.utils import logging as diffusers_logging
from PIL import Image

import diffusers_mardini
from diffusers_mardini import (
    FORMAT_VERSION,
    MarDiniModularPipeline,
    MarDiniPipeline,
    MarDiniScheduler,
    MarDiniTransformer3DModel,
)
from diffusers_mardini.format_version import SHIM, shims
from pipelines_tests.hub_server import HubServer, running_hub
from pipelines_tests.tiny_pipeline import clip, seeded, tiny_pipeline


COMPONENTS = {"vae", "planner", "transformer", "scheduler"}
REPO = "somebody/mardini-tiny"


def run(pipe) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        video=clip(2), num_frames=4, num_inference_steps=2, output_type="pt", generator=seeded()
    ).frames  # (1, 4, 3, 32, 32)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved")
    pipe.save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def modules_cache(tmp_path, monkeypatch):
    """Code from a folder is copied before it is imported; not into the user's cache."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))


def index_of(folder: Path) -> dict:
    return json.loads((folder / "model_index.json").read_text())


def test_the_index_names_the_package_and_no_module_path(folder):
    index = index_of(folder)
    assert {name: index[name][0] for name in COMPONENTS} == dict.fromkeys(COMPONENTS, "diffusers_mardini")
    assert index["transformer"][1] == "MarDiniTransformer3DModel"
    assert index["planner_downscale"] == 2


def test_an_autoencoder_of_diffusers_is_named_as_theirs(tmp_path):
    tiny_pipeline("kl").save_pretrained(tmp_path)
    assert index_of(tmp_path)["vae"] == ["diffusers", "AutoencoderKL"]
    assert not (tmp_path / "vae/diffusers_mardini.py").exists()


def test_weights_are_safetensors_and_configs_json(folder):
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json", ".py"}
    code = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.py")}
    assert code == shims(index_of(folder)) and len(code) == 1 + len(COMPONENTS)


def test_every_class_in_an_index_is_a_name_of_the_package(folder):
    for library, name in (index_of(folder)[component] for component in COMPONENTS):
        assert hasattr(sys.modules[library], name)


@pytest.mark.parametrize("vae", ["patch_basis", "kl"])
def test_a_loaded_pipeline_gives_the_same_frames(tmp_path, vae):
    pipe = tiny_pipeline(vae)
    pipe.save_pretrained(tmp_path)
    loaded = MarDiniPipeline.from_pretrained(tmp_path)
    assert loaded.config.planner_downscale == 2
    assert torch.equal(run(loaded), run(pipe))


def test_the_generic_class_loads_the_same_pipeline(pipe, folder):
    loaded = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    assert type(loaded) is MarDiniPipeline
    assert torch.equal(run(loaded), run(pipe))


@pytest.mark.parametrize("part", ["planner", "transformer", "vae"])
def test_the_generic_class_of_models_finds_each_part(pipe, folder, part, caplog):
    ours = getattr(pipe, part)
    for loaded in (
        AutoModel.from_pretrained(str(Path(folder) / part), trust_remote_code=True),  # its folder alone, by `auto_map`
        AutoModel.from_pretrained(str(folder), subfolder=part),  # by the pipeline's index
    ):
        assert type(loaded) is type(ours) and "auto_map" not in loaded.config
        assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), ours.state_dict().values()))
    assert "not expected" not in caplog.text


def test_diffusers_own_command_samples(folder, tmp_path):
    Image.new("RGB", (32, 32), "green").save(tmp_path / "a.png")
    arguments = {"image": str(tmp_path / "a.png"), "num_frames": 3, "num_inference_steps": 1}
    command = [
        sys.executable, "-m", "diffusers.commands.diffusers_cli", "run", "-m", str(folder), "--trust-remote-code",
        "--device", "cpu", "--pipeline-kwargs", json.dumps(arguments), "-o", str(tmp_path / "out.mp4"),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert len(list((tmp_path / "out-frames").iterdir())) == 3


def test_the_generic_class_runs_no_code_that_is_not_trusted(folder):
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(folder)


def test_our_class_runs_no_code_from_the_folder(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for path in copy.rglob("*.py"):
        path.write_text("raise RuntimeError('code of the folder was run')")
    assert type(MarDiniPipeline.from_pretrained(copy)) is MarDiniPipeline
    for path in copy.rglob("*.py"):
        path.unlink()
    assert type(MarDiniPipeline.from_pretrained(copy)) is MarDiniPipeline


def test_without_the_plugin_the_folder_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers_mardini", None)  # makes the import fail
    with pytest.raises(ImportError, match="`pip install .` in a checkout"):
        exec(SHIM, {})


def test_what_was_loaded_by_the_generic_class_is_saved_in_the_same_form(folder, tmp_path):
    DiffusionPipeline.from_pretrained(folder, trust_remote_code=True).save_pretrained(tmp_path / "again")
    assert index_of(tmp_path / "again") == index_of(folder)
    assert (tmp_path / "again" / "pipeline_mardini.py").read_text() == SHIM


def test_a_saved_folder_does_not_tell_where_the_pipeline_came_from(folder, tmp_path):
    MarDiniPipeline.from_pretrained(folder).save_pretrained(tmp_path / "again")
    configs = list((tmp_path / "again").rglob("*.json"))
    assert len(configs) == 1 + len(COMPONENTS)
    assert all(str(folder) not in config.read_text() for config in configs)


def test_loading_warns_of_nothing(folder, caplog):
    diffusers_logging.set_verbosity_warning()
    diffusers_logging.enable_propagation()  # to where pytest listens
    try:
        diffusers_logging.get_logger("diffusers.tests").warning("heard")
        MarDiniPipeline.from_pretrained(folder)
    finally:
        diffusers_logging.disable_propagation()
    assert {record.getMessage() for record in caplog.records if record.levelname == "WARNING"} == {"heard"}


@pytest.fixture
def hub(folder, tmp_path):
    with running_hub(tmp_path / "hub", token=None) as hub:
        hub.add_folder(REPO, folder)
        yield hub


def test_our_class_loads_from_the_hub(pipe, hub):
    loaded = MarDiniPipeline.from_pretrained(REPO)
    assert torch.equal(run(loaded), run(pipe))
    asked = len(hub.requests)
    MarDiniPipeline.from_pretrained(REPO, local_files_only=True)  # from the cache
    assert len(hub.requests) == asked


def test_the_generic_class_loads_from_the_hub(pipe, hub):
    loaded = DiffusionPipeline.from_pretrained(REPO, trust_remote_code=True)
    assert type(loaded) is MarDiniPipeline
    assert torch.equal(run(loaded), run(pipe))


def test_the_generic_class_asks_for_trust_before_it_loads_from_the_hub(hub):
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(REPO)
    assert not [request for request in hub.requests if request.endswith(".safetensors")]


def test_variants_and_shards_are_loaded_from_the_hub(pipe, hub, tmp_path):
    pipe.save_pretrained(tmp_path / "variant", variant="small", max_shard_size="100KB")
    hub.add_folder("somebody/variant", tmp_path / "variant")
    loaded = MarDiniPipeline.from_pretrained("somebody/variant", variant="small")
    torch.testing.assert_close(
        run(loaded), run(pipe)
    )  # products of weights that lie elsewhere in memory round otherwise


def test_one_model_is_loaded_alone_from_the_hub(pipe, hub):
    transformer = MarDiniTransformer3DModel.from_pretrained(REPO, subfolder="transformer")
    for name, tensor in pipe.transformer.state_dict().items():
        assert torch.equal(transformer.state_dict()[name], tensor), name


def test_the_index_tells_the_version_of_the_format(folder):
    assert index_of(folder)["_mardini_format"] == FORMAT_VERSION == 1


def set_format(folder: Path, version: object) -> Path:
    """Says that the saved folder is of another version, as a plugin that writes it would."""
    index = index_of(folder)
    del index["_mardini_format"]
    if version is not None:
        index["_mardini_format"] = version
    (folder / "model_index.json").write_text(json.dumps(index))
    shim = SHIM.replace(f"FORMAT_VERSION = {FORMAT_VERSION} ", f"FORMAT_VERSION = {version} ")
    (folder / "pipeline_mardini.py").write_text(shim)
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_a_folder_without_a_version_is_of_the_first_format(pipe, copy):
    set_format(copy, None)
    for path in copy.rglob("*.py"):
        path.unlink()
    (copy / "pipeline_mardini.py").write_text("from diffusers_mardini import MarDiniPipeline\n")
    assert torch.equal(run(MarDiniPipeline.from_pretrained(copy)), run(pipe))
    assert torch.equal(run(DiffusionPipeline.from_pretrained(copy, trust_remote_code=True)), run(pipe))


def test_a_folder_of_a_newer_format_says_what_to_update(copy):
    set_format(copy, 2)
    advice = "update it with `git pull` and `pip install .` in its checkout"
    with pytest.raises(ValueError, match=f"copy' was saved in format 2 .* up to 1; .*{advice}"):
        MarDiniPipeline.from_pretrained(copy)
    with pytest.raises(ImportError, match=f"saved in format 2, .* does not know; .*{advice}"):
        DiffusionPipeline.from_pretrained(copy, trust_remote_code=True)


def test_a_newer_format_on_the_hub_is_noticed_before_weights_are_fetched(copy, hub):
    hub.add_folder("somebody/newer", set_format(copy, 2))
    with pytest.raises(ValueError, match="was saved in format 2"):
        MarDiniPipeline.from_pretrained("somebody/newer")
    with pytest.raises(ImportError, match="saved in format 2"):
        DiffusionPipeline.from_pretrained("somebody/newer", trust_remote_code=True)
    assert not [request for request in hub.requests if request.endswith(".safetensors")]


@pytest.mark.parametrize("version", [0, "1", 1.5])
def test_a_version_that_is_none_is_refused(copy, version):
    with pytest.raises(ValueError, match="must be a whole number from 1"):
        MarDiniPipeline.from_pretrained(set_format(copy, version))


def test_a_plugin_from_before_the_versions_is_told_to_update(monkeypatch):
    monkeypatch.delattr(diffusers_mardini, "FORMAT_VERSION")
    with pytest.raises(
        ImportError, match=f"installed diffusers-mardini {re.escape(diffusers_mardini.__version__)} does"
    ):
        exec(SHIM, {})


def test_the_private_table_of_diffusers_is_still_what_it_was():
    """`diffusers_mardini/__init__.py` adds an entry; when this fails, read how diffusers resolves libraries now."""
    assert diffusers.__version__.split(".")[:2] in (["0", "42"], ["0", "43"])
    ours, theirs = LOADABLE_CLASSES["diffusers_mardini"], LOADABLE_CLASSES["diffusers"]
    assert LOADABLE_CLASSES["diffusers_mardini.components"] == ours
    for name, methods in ours.items():
        assert theirs[name] == methods
        assert getattr(diffusers_mardini, name) is getattr(diffusers, name)


def test_a_part_may_be_replaced_while_loading(folder):
    scheduler = MarDiniScheduler(timestep_spacing="linspace")
    loaded = MarDiniPipeline.from_pretrained(folder, scheduler=scheduler)
    assert loaded.scheduler is scheduler


def test_a_scheduler_of_other_noise_levels_is_refused_when_it_is_passed_while_loading_too(folder):
    other = DDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match="other noise levels"):
        run(MarDiniPipeline.from_pretrained(folder, scheduler=other))
    ours = DDIMScheduler.from_config(MarDiniScheduler().config)
    assert run(MarDiniPipeline.from_pretrained(folder, scheduler=ours)).isfinite().all()
    pipe = MarDiniModularPipeline(pretrained_model_name_or_path=str(folder))
    pipe.load_components()
    pipe.update_components(scheduler=other)
    with pytest.raises(ValueError, match="other noise levels"):
        pipe(image=clip(1)[0], num_frames=4, num_inference_steps=2)


def test_another_scheduler_is_saved_and_loaded(tmp_path):
    pipe = tiny_pipeline()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path)
    loaded = MarDiniPipeline.from_pretrained(tmp_path)
    assert type(loaded.scheduler) is DDIMScheduler
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    assert torch.equal(run(loaded), run(pipe))


def test_half_precision_is_loaded_and_runs(folder):
    loaded = MarDiniPipeline.from_pretrained(folder, dtype=torch.bfloat16)
    assert loaded.transformer.dtype == torch.bfloat16 and loaded.vae.dtype == torch.bfloat16
    assert run(loaded).isfinite().all()


def test_variants_and_shards_are_loaded(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, variant="small", max_shard_size="20KB")
    assert len(list((tmp_path / "transformer").glob("*small*.safetensors"))) > 1
    loaded = MarDiniPipeline.from_pretrained(tmp_path, variant="small")
    torch.testing.assert_close(
        run(loaded), run(pipe)
    )  # products of weights that lie elsewhere in memory round otherwise
    for name, tensor in loaded.transformer.state_dict().items():
        assert torch.equal(tensor, pipe.transformer.state_dict()[name]), name


def test_one_model_is_loaded_alone(pipe, folder):
    transformer = MarDiniTransformer3DModel.from_pretrained(folder, subfolder="transformer")
    for name, tensor in pipe.transformer.state_dict().items():
        assert torch.equal(transformer.state_dict()[name], tensor), name


def test_the_version_is_that_of_a_first_release():
    assert diffusers_mardini.__version__ == "0.1.0.dev0"
    assert all(hasattr(diffusers_mardini, name) for name in diffusers_mardini.__all__)


@pytest.mark.slow  # starts Python and imports torch anew
@pytest.mark.parametrize("place", ["folder", "hub"])
def test_a_program_that_imports_only_diffusers_loads_the_pipeline(folder, hub, tmp_path, place):
    program = (
        "import sys\n"
        "from diffusers import DiffusionPipeline\n"
        "assert 'diffusers_mardini' not in sys.modules\n"
        f"pipe = DiffusionPipeline.from_pretrained({str(folder) if place == 'folder' else REPO!r}, trust_remote_code=True)\n"
        "print(type(pipe).__name__)\n"
    )
    result = run_program(program, hub, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[0] == "MarDiniPipeline"


@pytest.mark.slow  # starts Python and imports diffusers anew
@pytest.mark.parametrize("place", ["folder", "hub"])
def test_without_the_plugin_a_program_is_told_what_to_install(folder, hub, tmp_path, place):
    program = (
        "import sys\n"
        "sys.modules['diffusers_mardini'] = None  # makes the import fail\n"
        "from diffusers import DiffusionPipeline\n"
        f"DiffusionPipeline.from_pretrained({str(folder) if place == 'folder' else REPO!r}, trust_remote_code=True)\n"
    )
    result = run_program(program, hub, tmp_path)
    assert result.returncode == 1
    assert "needs the diffusers plugin of MarDini; install it with `pip install .` in a checkout" in result.stderr
    assert "pip install diffusers_mardini" not in result.stdout + result.stderr  # a name that anyone may register


@pytest.mark.slow  # starts Python and imports diffusers anew
def test_without_the_plugin_a_part_alone_says_what_to_install_too(folder, hub, tmp_path):
    program = (
        "import sys\n"
        "sys.modules['diffusers_mardini'] = sys.modules['diffusers_mardini.components'] = None\n"
        "from diffusers import AutoModel\n"
        f"AutoModel.from_pretrained({str(Path(folder) / 'transformer')!r}, trust_remote_code=True)\n"
    )
    result = run_program(program, hub, tmp_path)
    assert result.returncode == 1
    assert "needs the diffusers plugin of MarDini; install it with `pip install .` in a checkout" in result.stderr
    assert "pip install diffusers_mardini" not in result.stdout + result.stderr


def run_program(program: str, hub: HubServer, home: Path) -> subprocess.CompletedProcess:
    environment = {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(home),
        "PYTHONPATH": ":".join(path for path in sys.path if path),
    }
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)


def test_the_configuration_is_saved_alone(tmp_path):
    tiny_pipeline().save_config(tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["model_index.json", "pipeline_mardini.py"]


def test_a_part_of_another_kind_leaves_no_code_of_the_one_before(tmp_path):
    tiny_pipeline("patch_basis").save_pretrained(tmp_path)
    assert (tmp_path / "vae" / "diffusers_mardini.py").exists()
    tiny_pipeline("kl").save_pretrained(tmp_path)
    code = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.py")}
    assert (
        code == set(shims(json.loads((tmp_path / "model_index.json").read_text())))
        and "vae/diffusers_mardini.py" not in code
    )


def test_saving_takes_the_arguments_of_diffusers_in_their_order(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "saved", True, "fp16")
    assert (tmp_path / "saved/transformer/diffusion_pytorch_model.fp16.safetensors").is_file()
    with pytest.raises(ValueError, match="safetensors alone"):
        pipe.save_pretrained(tmp_path / "other", False)
