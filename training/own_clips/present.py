"""Make what a user of a model of `training.fit` needs: facts of its card, an example, `how-to-use.md`."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from PIL import Image

from training.evaluation.evaluation_windows import EvaluationWindows
from training.files import write_whole


def short_name(clips: str) -> str:
    """Return the last two parts of a source's path, which say what it is without saying where."""
    return "/".join(Path(clips).parts[-2:]).lstrip("/")


def write_card_facts(
    path: Path, name: str, clips: str, options: Sequence[str], num_frames: int, reservations: Sequence[str]
) -> None:
    """Write the YAML file of facts that no run records, for `training.publish`; the model itself knows its window.

    Args:
        path: of the file.
        name: of the model.
        clips: `short_name` of the clips.
        options: of the fit, as they are typed.
        num_frames: of a window.
        reservations: sentences on what the scores leave open.
    """
    facts = {
        "name": name,
        "path": "model",
        "description": f"A small MarDini trained from scratch on own clips ({clips}) by `training.fit`.",
        "data": f"The clips of {clips}; which were held out is decided by `training.fit` before anything is trained.",
        "command": " ".join(["python -m training.fit", shlex.quote(clips), shlex.quote(name), *options]),
        "metrics_setting": " ".join(
            [
                f"Windows of held-out clips; first and last frame given, the {num_frames - 2} between them sampled; one "
                "sample each.",
                *reservations,
            ]
        ),
        "limits": [
            "Knows the kind of clips that it was trained on, at that size and pace; on others expect nonsense."
        ],
        "samples": [
            {"file": "sheet_0.png", "caption": "Held-out windows, nothing chosen. The framed frames are given."}
        ],
    }
    write_whole(path, yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=1000))


def write_example(folder: Path, windows: EvaluationWindows) -> list[Path]:
    """Write first and last frame of the window that moves most as PNG files `first.png` and `last.png`."""
    motion = (windows.frames[:, 0] - windows.frames[:, -1]).abs().mean(dim=(1, 2, 3))
    window = windows.frames[int(motion.argmax())]
    paths = []
    for name, frame in (("first", window[0]), ("last", window[-1])):
        paths.append(folder / f"{name}.png")
        Image.fromarray(frame.permute(1, 2, 0).mul(255).round().byte().numpy()).save(paths[-1])
    return paths


# In the folder of the model: frames between two pictures, a picture set in motion, a longer clip.
USES = {
    "The frames between two pictures:": ["interpolate", "first.png", "last.png", "-o", "between.mp4"],
    "A picture set in motion (what follows is a guess):": ["animate", "first.png", "-o", "animated.mp4"],
    "A longer clip:": ["extend", "between.mp4", "-o", "longer.mp4", "--new-frames", "16"],
}


def write_how_to_use(model: Path, run: Callable[[Sequence[str]], None], verdict: Sequence[str]) -> Path:
    """Run the commands of `USES` and write `how-to-use.md` with them.

    Args:
        model: folder of the published model, which holds `first.png` and `last.png`.
        run: runs arguments of `mardini` in that folder.
        verdict: sentences on whether the model is any good.
    """
    lines = [
        "# How to use this model",
        "",
        *verdict,
        "",
        "Each command was run, in this folder, when this was written.",
        "",
    ]
    for caption, command in USES.items():
        command = [*command, "--checkpoint", "."]
        for made in command:
            if made.endswith(".mp4") and command[command.index(made) - 1] == "-o":
                (model / made).unlink(missing_ok=True)  # of an interrupted start
        run(command)
        lines += [caption, "", "```bash", shlex.join(["mardini", *command]), "```", ""]
    lines += [
        "From Python:", "", "```python", "from diffusers_mardini import MarDiniPipeline", "from PIL import Image", "",
        'pipe = MarDiniPipeline.from_pretrained(".")',
        'frames = pipe(image=Image.open("first.png"), last_image=Image.open("last.png")).frames[0]', "```", "",
        "To put it on the Hub, with the pictures and videos of your clips that lie here (take out what others should "
        "not see):", "", "```bash", "mardini push . your-name/your-model", "```", "",
    ]  # fmt: skip
    path = model / "how-to-use.md"
    write_whole(path, "\n".join(lines))
    return path
