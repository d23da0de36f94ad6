"""`mardini doctor` says what is here and what is missing, with a hint for each missing thing."""

import json

import pytest

from diffusers_mardini.cli import doctor
from pipelines_tests.cli.commands import outputs


@pytest.fixture
def here(checkpoint, monkeypatch):
    monkeypatch.setenv("MARDINI_CHECKPOINT", str(checkpoint))


def findings(*arguments) -> tuple[int, dict[str, dict]]:
    code, told, _ = outputs("doctor", "--json", *arguments)
    found = json.loads(told)
    assert code == bool(found["missing"])
    return code, {finding["name"]: finding for finding in found["findings"]}


def test_a_machine_that_can_run_the_tests_lacks_nothing_that_is_needed(here):
    code, found = findings()
    assert code == 0
    assert {"python", "cpu", "chosen", "write .mp4", "read h264", "peft", "checkpoint", "disk here"} <= found.keys()
    assert all(finding["hint"] for finding in found.values() if finding["state"] != doctor.OK)


@pytest.mark.parametrize(
    "name, change, hint",
    [
        ("write .mp4", ("has_codec", lambda *_, **__: False), "av"),
        ("peft", ("find_spec", lambda _: None), "pip install peft"),
        ("disk here", ("LOW_DISK", 2**80), "make room"),
        ("write .webp", ("features", type("None", (), {"check": staticmethod(lambda _: False)})), "Pillow"),
    ],
)
def test_a_missing_thing_has_a_hint(here, monkeypatch, name, change, hint):
    monkeypatch.setattr(doctor, *change)
    code, found = findings()
    assert found[name]["state"] != doctor.OK and hint in found[name]["hint"]
    assert code == (name == "write .mp4")


def test_a_checkpoint_that_is_missing_is_needed_and_one_on_the_hub_is_not_looked_for(here, tmp_path):
    assert findings("--checkpoint", tmp_path / "none")[0] == 1
    code, found = findings("--checkpoint", "somebody/model")
    assert code == 0 and "from the Hub" in found["checkpoint"]["hint"]


def test_a_package_out_of_its_range_is_missing(here, monkeypatch):
    version = doctor.metadata.version
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: ["torch>=2.6", "diffusers>=0.42", "nothing>=1"])
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "0.1" if name == "torch" else version(name))
    _, found = findings()
    assert (
        found["torch"]["hint"] == 'pip install "torch>=2.6"' and found["nothing"]["hint"] == 'pip install "nothing>=1"'
    )
    assert found["diffusers"]["state"] == doctor.OK
