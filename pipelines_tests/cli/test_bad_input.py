"""Every kind of bad input is one sentence and a documented exit code: no traceback, and nothing is left behind."""

import os

import pytest

from diffusers_mardini.cli.errors import EXIT_CODES
from pipelines_tests.cli.commands import QUICK, SAMPLING, listing, outputs
from pipelines_tests.cli.test_help import COMMANDS


FAILED, WRONG = 1, 2
BIG = 2**31
BLENDED = ("--paste-given", "--blend", 1)

# What any command that samples refuses: options, the code, and words of the sentence.
SHARED = [
    (["--seed", 2**64], WRONG, "--seed is 18446744073709551616"),
    (["--seed", -(2**63) - 1], WRONG, "--seed is -9223372036854775809"),
    (["--seed", "x"], WRONG, "--seed"),
    (["--steps", 0], WRONG, "--steps is 0; give 1 to"),
    (["--steps", -3], WRONG, "--steps is -3"),
    (["--steps", 2000], FAILED, "the scheduler has 1000 noise levels"),
    (["--steps", 1.5], WRONG, "--steps"),
    (["--scheduler", "heun!"], FAILED, "scheduler 'heun!' cannot take over"),
    (["--scheduler", "FlowMatchEulerDiscreteScheduler"], FAILED, "cannot take over"),
    (["--guidance-scale", "nan"], WRONG, "--guidance-scale is nan"),
    (["--guidance-scale", "inf"], WRONG, "--guidance-scale is inf"),
    (["--guidance-scale", "much"], WRONG, "--guidance-scale"),
    (["--size", "0"], WRONG, "the size is '0'"),
    (["--size", "big"], WRONG, "the size is 'big'"),
    (["--size", "64x"], WRONG, "the size is '64x'"),
    (["--size", "9" * 400], WRONG, "the size is '999"),
    (["--size", "30"], FAILED, "divisible by 16"),
    (["--size", "16400x16"], FAILED, "at most 16384 pixels"),
    (["--fps", 0], WRONG, "--fps is 0"),
    (["--fps", -1], WRONG, "--fps is -1"),
    (["--fps", "nan"], WRONG, "--fps is nan"),
    (["--fps", "inf"], WRONG, "--fps is inf"),
    (["--fps", 1e9], FAILED, "an mp4 has between"),
    (["--device", "abacus"], FAILED, "device 'abacus' cannot be used"),
    (["--device", "meta"], FAILED, "device 'meta' cannot be used"),
    (["--device", "cuda:99"], FAILED, "device 'cuda:99' cannot be used"),
    (["--dtype", "int3"], WRONG, "dtype 'int3' is unknown"),
    (["--blend", 2], WRONG, "give --paste-given too"),
    (["--paste-given", "--blend", -1], WRONG, "--blend is -1"),
    (["--lora", "=0.5"], WRONG, "--lora is '=0.5'"),
    (["--lora", "a=nan"], WRONG, "--lora is 'a=nan'"),
    (["--lora", "./none"], FAILED, "'./none' cannot be read as LoRA weights"),
    (["--lora", "a.png"], FAILED, "'a.png' cannot be read as LoRA weights"),
    (["--lora", "empty"], FAILED, "'empty' cannot be read as LoRA weights"),
    (["--format", "gif"], WRONG, "has its form by its suffix"),
    (["--checkpoint", "/no/such/folder"], FAILED, "there is no folder '/no/such/folder'"),
    (["--checkpoint", "./none"], FAILED, "there is no folder './none'"),
    (["--checkpoint", "runs/a/pipeline"], FAILED, "there is no folder 'runs/a/pipeline'"),
    (["--checkpoint", "~/none"], FAILED, "there is no folder"),
    (["--checkpoint", "."], FAILED, "holds no model_index.json"),
    (["--checkpoint", "a.png"], FAILED, "is a file; give the folder"),
    (["--checkpoint", "somebody/nothing"], FAILED, "no folder here, so taken for a Hub id"),
    (["--no-such-option"], WRONG, "no-such-option"),
    (["--force"], WRONG, "--force"),
    (["--num-frames", 9], WRONG, "--num-frames"),
    (["--seed"], WRONG, "--seed"),
    (["one-more.png=", "--json=yes"], WRONG, "`mardini"),
]
OUTPUTS = [
    ("out.avi", WRONG, "suffix '.avi' is unknown"),
    ("out.png", WRONG, "suffix '.png' is unknown"),
    ("out.mp4.", FAILED, "ends with a dot"),
    (".mp4", FAILED, "is a suffix without a name"),
    ("y" * 252 + ".mp4", FAILED, "too long"),
    ("a.png/out.mp4", FAILED, "is a file"),
    ("folder.mp4", FAILED, "is a folder"),
    ("there.mp4", FAILED, "give another name, or --overwrite"),
    ("full", FAILED, "holds other files"),
    ("..", FAILED, "no name of its own"),
    ("/proc/out.mp4", FAILED, "/proc"),
]
# A command of its own, the code, words of the sentence.
OWN = [
    ([], WRONG, "Usage: "),
    (["nonsense"], WRONG, "nonsense"),
    (["animate"], WRONG, "'image'"),
    (["animate", "a.png"], WRONG, "--output"),
    (["animate", "-o", "out.mp4"], WRONG, "'image'"),
    (["animate", "a.png", "b.png", "-o", "out.mp4"], WRONG, "b.png"),
    (["animate", "missing.png", "-o", "out.mp4"], FAILED, "missing.png"),
    (["animate", "", "-o", "out.mp4"], FAILED, "is a folder"),
    (["animate", "clip.mp4", "-o", "out.mp4"], FAILED, "give one picture"),
    (["animate", "folder.mp4", "-o", "out.mp4"], FAILED, "is a folder"),
    (["animate", "text.png", "-o", "out.mp4"], FAILED, "'text.png' cannot be read as a picture"),
    (["animate", "cut.png", "-o", "out.mp4"], FAILED, "'cut.png' cannot be read as a picture"),
    (["animate", "nothing.png", "-o", "out.mp4"], FAILED, "'nothing.png' cannot be read as a picture"),
    (["animate", "text.txt", "-o", "out.mp4"], FAILED, "text.txt"),
    (["animate", "a.png", "-o", "out.mp4", "--frames", 1], WRONG, "--frames is 1; give 2 to"),
    (["animate", "a.png", "-o", "out.mp4", "--frames", 0], WRONG, "--frames is 0"),
    (["animate", "a.png", "-o", "out.mp4", "--frames", -9], WRONG, "--frames is -9"),
    (["animate", "a.png", "-o", "out.mp4", "--frames", 10**30], WRONG, "--frames is 1000"),
    (["animate", "a.png", "-o", "out.mp4", "--frames", "many"], WRONG, "--frames"),
    (["animate", "a.png", "-o", "out.gif", "--fps", 60], FAILED, "at most 50 frames per second"),
    (["animate", "a.png", "-o", "out.gif", "--fps", 0.001], FAILED, "at most 655 seconds"),
    (["animate", "a.png", "-o", "out.webm", "--fps", 900], FAILED, "a webm has between"),
    (["animate", "a.png", "-o", "-", "--format", "avi"], WRONG, "--format is avi"),
    (["animate", "a.png", "-o", "-", "--json"], WRONG, "would both go to standard output"),
    (["animate", "a.png", "-o", "-", "--format", "gif", "--fps", 60], FAILED, "at most 50 frames per second"),
    (["animate", "-", "-o", "out.mp4"], FAILED, "standard input"),
    (["animate", "a.png", "-o", "out.mp4", "--window", 9], WRONG, "--window"),
    (["interpolate", "a.png", "-o", "out.mp4"], WRONG, "'last'"),
    (["interpolate", "a.png", "b.png", "-o", "out.mp4", "--frames", 2], WRONG, "--frames is 2; give 3"),
    (["interpolate", "-", "-", "-o", "out.mp4"], WRONG, "can be only one of the files"),
    (["interpolate", "a.png", "missing.png", "-o", "out.mp4"], FAILED, "missing.png"),
    (["expand", "clip.mp4", "-o", "out.mp4", "--frames", 1], WRONG, "--frames is 1"),
    (["expand", "clip.mp4", "-o", "out.mp4", "--frames", 4], FAILED, "raise --frames"),
    (["expand", "clip.mp4", "-o", "out.mp4", "--use-frames", 9], FAILED, "has 4 frames"),
    (["expand", "clip.mp4", "-o", "out.mp4", "--use-frames", 0], WRONG, "--use-frames is 0"),
    (["fill", "-o", "out.mp4"], WRONG, "PLACE=FILE"),
    (["fill", "a.png", "-o", "out.mp4"], WRONG, "'a.png' is no picture with its place"),
    (["fill", "=a.png", "-o", "out.mp4"], WRONG, "'=a.png' is no picture with its place"),
    (["fill", "3=", "-o", "out.mp4"], WRONG, "'3=' is no picture with its place"),
    (["fill", "x=a.png", "-o", "out.mp4"], WRONG, "'x=a.png' is no picture with its place"),
    (["fill", "1.5=a.png", "-o", "out.mp4"], WRONG, "'1.5=a.png' is no picture with its place"),
    (["fill", "³=a.png", "-o", "out.mp4"], WRONG, "'³=a.png' is no picture with its place"),
    (["fill", f"{BIG}=a.png", "-o", "out.mp4"], WRONG, "the place of a.png is 2147483648"),
    (["fill", "9" * 5000 + "=a.png", "-o", "out.mp4"], WRONG, "is no picture with its place"),
    (["fill", "0=a.png", "0=b.png", "-o", "out.mp4"], WRONG, "place 0 is given twice"),
    (["fill", "5=a.png", "05=b.png", "-o", "out.mp4"], WRONG, "place 5 is given twice"),
    (["fill", "0=-", "4=-", "-o", "out.mp4"], WRONG, "can be only one of the files"),
    (["fill", "0=a.png", "1=b.png", "-o", "out.mp4"], WRONG, "all 2 frames are given"),
    (["fill", "0=a.png", "9=b.png", "-o", "out.mp4", "--frames", 5], WRONG, "lies beyond --frames 5"),
    (["fill", "0=a.png", "4=missing.png", "-o", "out.mp4"], FAILED, "missing.png"),
    (["fill", "0=a.png", "4=clip.mp4", "-o", "out.mp4"], FAILED, "give one picture"),
    (["fill", "2=a.png", "-o", "out.mp4", "--frames", BIG - 1], FAILED, "ask for fewer frames"),
    (["fill", "0=a.png", "4=b.png", "-o", "out.mp4", "--window", 2], WRONG, "--window is 2; give 3"),
    (["fill", "0=a.png", "4=b.png", "-o", "out.mp4", "--batch", 0], WRONG, "--batch is 0"),
    (["views", "a.png", "b.png", "-o", "out.mp4", "--frames", 2], WRONG, "--frames is 2; give 3"),
    (["views", "a.png", "-", "-o", "out.mp4"], FAILED, "standard input"),
    (["slow-motion", "clip.mp4", "-o", "out.mp4", "--factor", 1], WRONG, "--factor is 1; give 2"),
    (["slow-motion", "clip.mp4", "-o", "out.mp4", "--factor", 2.5], WRONG, "--factor"),
    (["slow-motion", "clip.mp4", "-o", "out.mp4", "--factor", 1001], WRONG, "--factor is 1001; give 2 to 1000"),
    (["slow-motion", "clip.mp4", "-o", "out.mp4", "--factor", 2**30], WRONG, "--factor is 1073741824"),
    (["slow-motion", "clip.mp4", "-o", "out.mp4", "--window", 1], WRONG, "--window is 1"),
    (["slow-motion", "a.png", "-o", "out.mp4"], FAILED, "give at least 2"),
    (["slow-motion", "a.png", "-o", "out.mp4", "--paste-given", "--blend", 1], FAILED, "goes between frames"),
    (["slow-motion", "text.mp4", "-o", "out.mp4"], FAILED, "'text.mp4'"),
    (["slow-motion", "nothing.mp4", "-o", "out.mp4"], FAILED, "'nothing.mp4'"),
    (["slow-motion", "empty", "-o", "out.mp4"], FAILED, "holds no pictures"),
    (["slow-motion", "mixed", "-o", "out.mp4"], FAILED, "cannot be read as a picture"),
    (["slow-motion", "fast.mp4", "-o", "out.gif"], FAILED, "at most 50 frames per second, got 60"),
    (["extend", "clip.mp4", "-o", "out.mp4", "--new-frames", 0], WRONG, "--new-frames is 0; give 1"),
    (["extend", "clip.mp4", "-o", "out.mp4", "--new-frames", BIG], WRONG, "--new-frames is 2147483648"),
    (
        ["extend", "clip.mp4", "-o", "out.mp4", "--new-frames", BIG - 1, "--paste-given", "--blend", 1],
        FAILED,
        "for fewer frames",
    ),
    (
        ["extend", "clip.mp4", "-o", "out.mp4", "--window", 4, "--overlap", 4],
        WRONG,
        "so that a window adds no frame",
    ),
    (
        ["extend", "clip.mp4", "-o", "out.mp4", "--overlap", 3, "--anchors", 3],
        WRONG,
        "no window would begin at the last frame",
    ),
    (["extend", "clip.mp4", "-o", "out.mp4", "--source-fps", 10], FAILED, "--source-fps is for pictures"),
    (["extend", "mixed", "-o", "out.mp4", "--source-fps", 0], WRONG, "--source-fps is 0"),
    (["extend", "mixed", "-o", "out.mp4", "--source-fps", "slow"], WRONG, "'slow' is no number"),
    (["extend", "clip.mp4", "-o", "out.mp4", "--overlap", 0], WRONG, "--overlap is 0"),
    (["extend", "missing.mp4", "-o", "out.mp4"], FAILED, "missing.mp4"),
    (["retime", "clip.mp4", "-o", "out.mp4"], WRONG, "--fps is missing"),
    (["retime", "clip.mp4", "-o", "out.mp4", "--fps", "fast"], WRONG, "--fps"),
    (["retime", "missing.mp4", "-o", "out.mp4", "--fps", 20], FAILED, "missing.mp4"),
    (["retime", "a.png", "-o", "out.mp4", "--fps", 20], FAILED, "give at least 2"),
    (["retime", "clip.mp4", "-o", "out.gif", "--fps", 60], FAILED, "at most 50 frames per second"),
    (["retime", "clip.mp4", "-o", "out.mp4", "--fps", 20, "--window", 2], WRONG, "--window is 2; give 3"),
    (["retime", "clip.mp4", "-o", "out.mp4", "--fps", 20, "--batch", 0], WRONG, "--batch is 0"),
    (
        ["retime", "clip.mp4", "-o", "out.mp4", "--fps", 20, "--paste-given", "--blend", 1],
        WRONG,
        "--blend is not for retime",
    ),
    (["retime", "clip.mp4", "-o", "out.mp4", "--fps", "30/0"], WRONG, "'30/0' is no number"),
    (["retime", "clip.mp4", "-o", "out.mp4", "--fps", 20, "--cuts", "maybe"], FAILED, "--cuts is 'maybe'"),
    (["retime", "clip.mp4", "-o", "out.mp4", "--fps", 20, "--cuts", ""], FAILED, "--cuts is ''"),
    (["retime", "clip.mp4", "-o", "out.mp4", "--fps", 20, "--cuts", "empty"], FAILED, "read as a text file"),
    (["retime", "clip.mp4", "-o", "out.mp4", "--fps", 20, "--cuts", "a.png"], FAILED, "read as a text file"),
    (["slow-motion", "clip.mp4", "-o", "out.mp4", "--cuts", "text.txt"], FAILED, "text.txt holds 'These'"),
    (["slow-motion", "clip.mp4", "-o", "out.mp4", "--cuts", "nothing.mp4"], FAILED, "nothing.mp4 holds no cut"),
    (["retime", "clip.mp4", "-o", "out.mp4", "--fps", 20, "--sound", "loud"], WRONG, "takes keep or drop"),
    (["retime", "clip.mp4", "-o", "out.mp4", "--fps", 20, "--sound", "stretch"], WRONG, "takes keep or drop"),
    (["slow-motion", "clip.mp4", "-o", "out.mp4", "--sound", "keep"], WRONG, "takes stretch or drop"),
    (["extend", "clip.mp4", "-o", "out.mp4", "--sound", "stretch"], WRONG, "takes keep or drop"),
    (["extend", "clip.mp4", "-o", "out.mp4", "--cuts", "keep"], WRONG, "--cuts"),
    (["slow-motion", "-", "-o", "out.mp4", "--resume"], WRONG, "give names in place of -"),
    (["retime", "clip.mp4", "-o", "-", "--fps", 20, "--resume"], WRONG, "give names in place of -"),
    (["extend", "clip.mp4", "-o", "there.mp4", "--resume"], FAILED, "give another name, or --overwrite"),
    (["slow-motion", "clip.mp4", "-o", "died.mp4"], FAILED, "--resume goes on with them"),
    (["extend", "clip.mp4", "-o", "out.mp4", *BLENDED, "--resume"], WRONG, "--resume and --blend"),
    (["slow-motion", "clip.mp4", "-o", "out.mp4", *BLENDED, "--cuts", "keep"], WRONG, "--cuts and --blend"),
    (["slow-motion", "clip.mp4", "-o", "out.mp4", *BLENDED, "--sound", "stretch"], WRONG, "--sound and --blend"),
    (["loop", "clip.mp4", "-o", "out.mp4", "--paste-given", "--new-frames-only"], WRONG, "leaves these out"),
    (["loop", "clip.mp4", "-o", "out.mp4", "--new-frames", 0], WRONG, "--new-frames is 0"),
    (["loop", "clip.mp4", "-o", "out.mp4", "--overlap", -1], WRONG, "--overlap is -1"),
    (["loop", "clip.mp4", "-o", "out.mp4", "--new-frames", BIG - 1], FAILED, "ask for fewer frames"),
    (["loop", "text.mp4", "-o", "out.mp4"], FAILED, "'text.mp4'"),
    (["info", "mardini-xl"], FAILED, "neither a preset"),
    (["info", "empty"], FAILED, "neither a preset"),
    (["info", "mardini-tiny", "--size", "60"], FAILED, "divisible by 16"),
    (["info", "mardini-tiny", "--size", "x"], WRONG, "the size is 'x'"),
    (["info", "mardini-tiny", "--frames", 2], WRONG, "--frames is 2"),
    (["info", "mardini-tiny", "--steps", 0], WRONG, "--steps is 0"),
    (["info", "mardini-tiny", "--dtype", "int3"], WRONG, "dtype 'int3' is unknown"),
    (["info", "--checkpoint", "./none"], FAILED, "there is no folder './none'"),
    (["push", "empty"], WRONG, "'repo'"),
    (["push", "empty", "you/mine"], FAILED, "model_index.json"),
    (["push", "missing", "you/mine"], FAILED, "missing"),
    (["push", "checkpoint", "mine"], FAILED, "owner"),
    (["push", "checkpoint", "you/mine", "--facts", "missing.json"], FAILED, "missing.json"),
    (["push", "checkpoint", "you/mine", "--facts", "text.json"], FAILED, "text.json"),
    (["push", "checkpoint", "you/mine", "--facts", "list.json"], FAILED, "list.json"),
    (["doctor", "--device", "abacus"], FAILED, "device 'abacus' cannot be used"),
    (["doctor", "--dtype", "int3"], WRONG, "dtype 'int3' is unknown"),
    (["doctor", "--checkpoint", "./none"], FAILED, "there is no folder './none'"),
]
COMMAND_NAMES = list(SAMPLING)
# The shared options go around the commands in turn: they are declared once.
CASES = (
    [([name, *SAMPLING[name], "-o", "out.mp4", *options], code, words)
     for i, (options, code, words) in enumerate(SHARED) for name in [COMMAND_NAMES[i % len(COMMAND_NAMES)]]]
    + [([name, *SAMPLING[name], "-o", output], code, words)
       for i, (output, code, words) in enumerate(OUTPUTS) for name in [COMMAND_NAMES[i % len(COMMAND_NAMES)]]]
    + OWN
)  # fmt: skip


def check(code: int, told: bytes, errors: str) -> str:
    """Hold what is true of every failure; return the sentence."""
    assert code in EXIT_CODES and code != 0, errors
    assert "Traceback" not in errors and "not foreseen" not in errors, errors
    before, found, sentence = errors.rpartition("error: ")
    assert found and "error: " not in before and told == b"", errors
    # What may not be sent to the Hub is a list of files, indented.
    assert all(line.startswith("  ") for line in sentence.splitlines()[1:]), errors
    return sentence


@pytest.mark.parametrize("arguments, code, words", CASES, ids=lambda value: " ".join(map(str, value))[:60]
                         if isinstance(value, list) else "")  # fmt: skip
def test_bad_input_is_one_sentence(room, monkeypatch, arguments, code, words):
    monkeypatch.chdir(room)
    monkeypatch.setenv("MARDINI_CHECKPOINT", str(room / "checkpoint"))
    monkeypatch.setenv("HOME", str(room))
    quick = QUICK if arguments and arguments[0] in SAMPLING else ()
    given = {str(argument) for argument in arguments}
    quick = [word for option, value in zip(quick[::2], quick[1::2]) if option not in given for word in (option, value)]
    before = listing(room)
    found, told, errors = outputs(*arguments, *quick, stdin=b"")
    if words == "Usage: ":
        assert found == code and told.decode().startswith(words)
    elif arguments[0] == "doctor" and code == FAILED:  # its result is what is wrong
        assert found == code and words in told.decode() and errors == ""
    else:
        assert words in check(found, told, errors) and found == code
    assert listing(room) == before


def test_there_are_enough_cases_and_every_command_has_some():
    assert len(CASES) >= 120
    assert {str(arguments[0]) for arguments, _, _ in CASES if arguments} >= set(COMMANDS)


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write_is_named(room, tmp_path, monkeypatch):
    monkeypatch.setenv("MARDINI_CHECKPOINT", str(room / "checkpoint"))
    tmp_path.chmod(0o500)
    code, told, errors = outputs("animate", room / "a.png", "-o", tmp_path / "out.mp4", *QUICK)
    assert "write-protected" in check(code, told, errors)
