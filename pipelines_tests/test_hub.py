"""What may be shared, what is whole, and the upload, to a stand-in of the Hub on the loopback interface."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusers_mardini.cards import write_model_card
from diffusers_mardini.hub import describe, plan_upload, push, read_facts_file
from pipelines_tests.hub_server import COMMIT, READ_ONLY_TOKEN, TOKEN, running_hub
from pipelines_tests.tiny_pipeline import tiny_pipeline


REPO = "somebody/mardini-tiny"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    write_model_card(folder, {"num_frames": 4, "path": "checkpoints/tiny", "license": "apache-2.0"})
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded") / "tiny"
    tiny_pipeline().save_pretrained(folder, max_shard_size="100KB")
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


@pytest.fixture
def hub(tmp_path):
    with running_hub(tmp_path / "cache") as hub:
        yield hub


def problems_of(folder: Path) -> list[str]:
    with pytest.raises(ValueError, match="is not sent, for") as caught:
        plan_upload(folder, REPO)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_the_plan_lists_every_file_with_its_size_and_shows_the_card(folder, hub):
    upload = plan_upload(folder, REPO)
    text = describe(upload)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(upload.files) | {"README.md"} == names and len(names) == 14
    assert upload.files[WEIGHTS] == (folder / WEIGHTS).stat().st_size
    assert all(f"  {name} " in text for name in names) and "240.6 kB" in text
    assert upload.card.rstrip() in text and "license: apache-2.0" in text
    assert hub.requests == []


def test_snippets_load_from_the_repository_and_the_file_stays_as_it_is(folder):
    before = (folder / "README.md").read_text()
    upload = plan_upload(folder, REPO)
    assert f'from_pretrained("{REPO}")' in upload.card and f"--checkpoint {REPO}\n" in upload.card
    assert "checkpoints/tiny" not in upload.card and "not from checkpoints/tiny" in describe(upload)
    assert (folder / "README.md").read_text() == before


def test_without_a_card_one_is_made_of_what_the_folder_tells(folder):
    (folder / "README.md").unlink()
    upload = plan_upload(folder, REPO)
    assert "# mardini-tiny\n" in upload.card and "| transformer | 57,392 |" in upload.card
    assert "## Limits" not in upload.card and "license" not in upload.card
    assert "- Small." in plan_upload(folder, REPO, {"limits": ["Small."]}).card
    assert not (folder / "README.md").exists()


def test_facts_that_would_not_be_used_are_refused(folder):
    with pytest.raises(ValueError, match="has a README.md"):
        plan_upload(folder, REPO, {"limits": ["Small."]})


@pytest.mark.parametrize("content, message", [("{", "not valid JSON"), ("[1]", "holds a list; write an object")])
def test_a_file_of_facts_is_an_object(tmp_path, content, message):
    (tmp_path / "facts.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_facts_file(tmp_path / "facts.json")


@pytest.mark.parametrize(
    "name, reason",
    [
        ("transformer/diffusion_pytorch_model.bin", "can hold code"),
        ("optimizer.pt", "can hold code"),
        ("model.ckpt", "can hold code"),
        ("state.pkl", "can hold code"),
        ("setup.py", "is code"),
        ("transformer/pipeline_mardini.py", "is code"),
        (".env", "is hidden"),
        ("vae/.DS_Store", "is hidden"),
        ("README.md~", "is temporary"),
        ("vae/config.json.tmp", "is temporary"),
        (".model.safetensors.partial", "is temporary"),
        ("run.sh", "is not of a kind"),
        ("broken.json", "is not valid JSON"),
        ("model_index.json", "is not valid JSON"),
    ],
)
def test_what_is_unsafe_or_left_over_is_named_with_its_reason(folder, name, reason):
    (folder / name).write_text("{")
    (problem,) = problems_of(folder)
    assert problem.startswith(f"{name}: {reason}")


def test_a_hidden_or_unfinished_folder_is_one_line(folder):
    for name in (".git/objects", "transformer.partial"):
        (folder / name).mkdir(parents=True)
        (folder / name / "file").write_text("x")
    assert [line.split(":")[0] for line in problems_of(folder)] == [".git", "transformer.partial"]


def test_links_are_followed_within_the_folder_only(folder, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    (folder / "same.json").symlink_to("model_index.json")
    assert plan_upload(folder, REPO).files["same.json"] == (folder / "model_index.json").stat().st_size
    (folder / "outside.json").symlink_to(tmp_path / "secret.json")
    (folder / "broken.json").symlink_to(tmp_path / "nothing.json")
    (folder / "loop").symlink_to(folder)
    reasons = dict(line.split(": ", 1) for line in problems_of(folder))
    assert set(reasons) == {"outside.json", "broken.json", "loop"}
    assert str(tmp_path / "secret.json") in reasons["outside.json"] and "not there" in reasons["broken.json"]


def test_another_file_in_the_shims_place_is_refused(folder):
    for name in ("pipeline_mardini.py", "vae/diffusers_mardini.py"):
        with open(folder / name, "a") as file:
            file.write("\nprint('more')\n")
    problems = problems_of(folder)
    assert [line.split(": ")[0] for line in problems] == ["pipeline_mardini.py", "vae/diffusers_mardini.py"]
    assert all("is not the file that this version writes" in line for line in problems)


@pytest.mark.parametrize(
    "name, told",
    [
        ("model_index.json", "model_index.json: is missing, and so is pytorch_lora_weights.safetensors"),
        ("pipeline_mardini.py", "pipeline_mardini.py: is missing; without it"),
        ("planner/config.json", "planner/config.json: is missing, and model_index.json names planner"),
        ("scheduler/scheduler_config.json", "scheduler/scheduler_config.json: is missing"),
        ("planner/diffusers_mardini.py", "planner/diffusers_mardini.py: is missing; without it"),
        (WEIGHTS, f"{WEIGHTS}: is missing; there is a config"),
    ],
)
def test_what_is_missing_is_named(folder, name, told):
    (folder / name).unlink()
    (problem,) = problems_of(folder)
    assert problem.startswith(told)


def test_cut_off_weights_are_noticed(folder):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-1])
    (problem,) = problems_of(folder)
    assert problem.startswith(f"{WEIGHTS}: is not a whole safetensors file")


def test_shards_have_to_be_whole_and_listed(sharded, tmp_path):
    plan_upload(sharded, REPO)
    names = sorted(path.name for path in (sharded / "transformer").glob("*-of-*.safetensors"))
    assert len(names) == 3

    folder = Path(shutil.copytree(sharded, tmp_path / "a"))
    (folder / "transformer" / names[1]).unlink()
    (problem,) = problems_of(folder)
    assert problem.startswith(
        f"transformer/{names[1]}: is missing, and diffusion_pytorch_model.safetensors.index.json"
    )

    folder = Path(shutil.copytree(sharded, tmp_path / "b"))
    (folder / "transformer/diffusion_pytorch_model.safetensors.index.json").unlink()
    assert [line.split(": ")[1] for line in problems_of(folder)] == [
        "is one of several shards, and no index names it; save the pipeline again"
    ] * 3

    folder = Path(shutil.copytree(sharded, tmp_path / "c"))
    tensors = load_file(folder / "transformer" / names[0])
    lost = tensors.pop(min(tensors))
    assert lost.numel()
    save_file(tensors, folder / "transformer" / names[0])
    (problem,) = problems_of(folder)
    assert problem.startswith(f"transformer/{names[0]}: lacks 1 tensors that")


def test_a_variant_alone_is_whole(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "tiny", variant="small", max_shard_size="100KB")
    files = plan_upload(tmp_path / "tiny", REPO).files
    assert "transformer/diffusion_pytorch_model.safetensors.index.small.json" in files
    (tmp_path / "tiny/transformer/diffusion_pytorch_model.small-00001-of-00003.safetensors").unlink()
    assert problems_of(tmp_path / "tiny")


def test_a_folder_of_a_newer_format_is_not_sent(folder):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_mardini_format": 99}))
    (problem,) = problems_of(folder)
    assert "format 99" in problem and "update it with `git pull`" in problem


def test_every_problem_is_told_at_once(folder):
    (folder / ".secret").write_text("x")
    (folder / "model.pt").write_text("x")
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="is not sent, for 3 reasons"):
        plan_upload(folder, REPO)


@pytest.mark.parametrize("repo", ["tiny", "a/b/c", "some body/tiny", "somebody/ti..ny"])
def test_a_repository_has_an_owner_and_a_name(folder, repo):
    with pytest.raises(ValueError):
        plan_upload(folder, repo)


def test_a_card_that_the_hub_cannot_read_is_refused(folder):
    (folder / "README.md").write_text("---\nlicense: [\n---\n# x\n")
    (problem,) = problems_of(folder)
    assert problem.startswith("README.md: the block between")


def test_what_arrives_is_what_was_shown(folder, hub):
    upload = plan_upload(folder, REPO)
    address = push(upload, commit_message="First")
    assert address == f"{hub.address}/{REPO}/commit/{COMMIT}" and hub.messages == ["First"]
    arrived = hub.repositories[REPO]
    assert {name: len(content) for name, content in arrived.items() if name != "README.md"} == upload.files
    assert arrived["README.md"].decode() == upload.card
    assert arrived[WEIGHTS] == (folder / WEIGHTS).read_bytes()
    assert hub.requests[0] == "POST /api/validate-yaml"


def test_an_existing_repository_is_updated_and_a_new_one_may_be_private(folder, hub, monkeypatch):
    push(plan_upload(folder, REPO), private=True)
    assert hub.private == {REPO}
    (folder / "NOTICE").write_text("more")
    monkeypatch.chdir(folder)
    push(plan_upload(Path("."), REPO))
    assert hub.repositories[REPO]["NOTICE"] == b"more" and hub.messages == ["Upload tiny"] * 2


def test_a_commit_may_be_proposed(folder, hub):
    assert push(plan_upload(folder, REPO), create_pr=True) == f"{hub.address}/{REPO}/discussions/1"


@pytest.mark.parametrize(
    "token, advice", [(None, "401.*hf auth login"), (READ_ONLY_TOKEN, "403.*may not write to somebody")]
)
def test_without_a_token_that_may_write_nothing_is_made(folder, tmp_path, token, advice):
    with running_hub(tmp_path / "cache", token=token) as hub:
        with pytest.raises(ValueError, match=advice):
            push(plan_upload(folder, REPO))
        assert hub.repositories == {}


def test_a_token_may_be_given(folder, tmp_path):
    with running_hub(tmp_path / "cache", token=None) as hub:
        push(plan_upload(folder, REPO), token=TOKEN)
        assert WEIGHTS in hub.repositories[REPO]


def test_a_card_that_the_hub_refuses_leaves_no_repository(folder, hub):
    (folder / "README.md").write_text("---\nlibrary_name: diffusers\nlicense: [1]\n---\n# x\n")
    with pytest.raises(ValueError, match="license"):
        push(plan_upload(folder, REPO))
    assert hub.repositories == {}


def test_a_hub_that_is_not_there_is_said_so(folder, hub):
    upload = plan_upload(folder, REPO)
    hub.close()
    with pytest.raises(ValueError, match="was not reached"):
        push(upload)


def test_the_pipeline_shows_first_and_sends_when_told_to(hub, capsys):
    pipe = tiny_pipeline()
    assert pipe.push_to_hub(REPO, facts={"num_frames": 4, "limits": ["Small."]}) is None
    text = capsys.readouterr().out
    assert WEIGHTS in text and "- Small." in text and "Nothing was sent" in text
    assert hub.requests == [] and hub.repositories == {}

    pipe.push_to_hub(REPO, facts={"num_frames": 4, "limits": ["Small."]}, dry_run=False, private=True)
    assert set(hub.repositories[REPO]) == {*plan_files(pipe), "README.md"}
    assert "- Small." in hub.repositories[REPO]["README.md"].decode() and hub.private == {REPO}


def plan_files(pipe) -> set[str]:
    models = {f"{name}/{file}" for name in ("vae", "planner", "transformer")
              for file in ("config.json", "diffusion_pytorch_model.safetensors")}  # fmt: skip
    code = {f"{name}/diffusers_mardini.py" for name in ("vae", "planner", "transformer", "scheduler")}
    return models | code | {"scheduler/scheduler_config.json", "model_index.json", "pipeline_mardini.py"}


def test_lora_weights_are_sent_with_a_card_of_an_adapter(tmp_path, hub):
    folder = tmp_path / "lora"
    folder.mkdir()
    tensors = {"transformer.a.lora_A.weight": torch.ones(2, 8), "transformer.a.lora_B.weight": torch.ones(8, 2)}
    save_file(tensors, folder / "pytorch_lora_weights.safetensors")
    with pytest.raises(ValueError, match="give the fact base_model"):
        plan_upload(folder, "somebody/lora")
    push(plan_upload(folder, "somebody/lora", {"base_model": REPO}))
    card = hub.repositories["somebody/lora"]["README.md"].decode()
    assert f"base_model: {REPO}\n" in card and "base_model_relation: adapter\n" in card
    assert 'load_lora_weights("somebody/lora")' in card and "| transformer | 32 |" in card
