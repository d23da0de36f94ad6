"""Sample videos by VBench's image-to-video protocol, named for its own tool, and score what needs no text.

    # VBench's images and prompts, or any folder of images
    python -m training.vbench CHECKPOINT IMAGES --info vbench2_i2v_full_info.json -o outputs/vbench
    python -m training.vbench CHECKPOINT IMAGES -o outputs/vbench --score

Writes five videos for each image, `videos/<prompt>-<0 to 4>.mp4`, their seeds in `videos.json`, and the given images
in `images/`. MarDini reads no text: a prompt is only a name. `evaluate_i2v.py --videos_path outputs/vbench/videos` of
github.com/Vchitect/VBench scores the videos (without `--info`, add `--mode custom_input --custom_image_folder
outputs/vbench/images`); `--score` computes the scores of `evaluation/networks/consistency.py` here. After an
interruption, the same command goes on.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.hardware import choose_device, choose_dtype
from diffusers_mardini.sizes import sides
from diffusers_mardini.video_io import natural_key, read_images, read_video, write_video
from training.data.clips import fit
from training.evaluation.evaluation_windows import DEFAULT_SIZE, digest_of, size_argument
from training.evaluation.methods import sampling_key
from training.evaluation.networks.consistency import CLIP, DINO, Consistency, mean_over_frames
from training.evaluation.sampling import sample_batch, weights_digest
from training.files import whole_file, write_whole


DEFAULT_FPS = 8  # of checkpoints that do not say what they were trained on
IMAGES = (".jpg", ".jpeg", ".png")  # the suffixes of VBench's custom_input
TEXT_ALONE = "camera_motion"  # the dimension whose prompts differ only in text


def prompts_of(images: Path, info: Path | None = None) -> dict[str, Path]:
    """Return the image of each prompt, from VBench's list or from a folder, where the file's stem is the prompt.

    Prompts for camera motion are left out of VBench's list, because they differ only in text.

    Raises:
        ValueError: if an image is missing, there is none, or a prompt cannot be the name of a file.
    """
    if info is None:
        if not images.is_dir():
            raise ValueError(f"there is no folder of images at '{images}'")
        paths = sorted((p for p in images.iterdir() if p.suffix.lower() in IMAGES), key=natural_key)
        prompts = {path.stem: path for path in paths}
        if len(prompts) < len(paths):
            raise ValueError(f"two images of '{images}' have the same name but for the suffix; rename one")
    else:
        rows = json.loads(info.read_text(encoding="utf-8"))
        wanted = [row for row in rows if set(row["dimension"]) - {TEXT_ALONE}]
        prompts = {row["prompt_en"]: images / row["image_name"] for row in wanted}
        missing = [path.name for path in prompts.values() if not path.is_file()]
        if missing:
            raise ValueError(
                f"{len(missing)} images that '{info}' names are not in '{images}', the first is '{missing[0]}'"
            )
    if not prompts:
        raise ValueError(f"'{images}' holds no image; accepted are {', '.join(IMAGES)}")
    bad = [prompt for prompt in prompts if "/" in prompt or "\0" in prompt]
    if bad:
        raise ValueError(f"the prompt {bad[0]!r} cannot be the name of a file")
    return prompts


def seed_of(seed: int, prompt: str, index: int) -> int:
    """Return the seed of one video, a hash of the arguments."""
    return int.from_bytes(hashlib.sha256(f"{seed} {index} {prompt}".encode()).digest()[:6])


def write_videos(
    pipe: MarDiniPipeline, prompts: dict[str, Path], output: Path, settings: dict[str, Any], samples: int = 5
) -> list[Path]:
    """Write the missing videos, and `videos.json` with their settings.

    Args:
        pipe: the checkpoint.
        prompts: see `prompts_of`.
        output: folder for `videos/` and `images/`.
        settings: `num_frames`, `height`, `width`, `steps`, `guidance_scale`, `seed`, `fps`.
        samples: videos of each image.

    Raises:
        ValueError: if `output` has videos with other settings or of other images.
    """
    record_file = output / "videos.json"
    sampled_by = sampling_key(pipe.scheduler, settings["steps"], settings["guidance_scale"])
    made_by = {**settings, "checkpoint": weights_digest(pipe), **sampled_by}
    seeds = {f"{p}-{i}.mp4": seed_of(settings["seed"], p, i) for p in prompts for i in range(samples)}
    digests = {prompt: digest_of(_given_image(path, settings)) for prompt, path in prompts.items()}
    if record_file.is_file():
        before = json.loads(record_file.read_text(encoding="utf-8"))
        changed = [key for key in made_by if before["settings"].get(key) != made_by[key]]
        images_before = before.get("images", {})
        changed += [f"image for {p!r}" for p, digest in digests.items() if images_before.get(p, digest) != digest]
        if changed:
            raise ValueError(
                f"'{output}' holds videos made with another {', '.join(changed)}; give another folder, or remove it"
            )
        all_seeds, all_digests = before["seeds"] | seeds, images_before | digests
    else:
        all_seeds, all_digests = seeds, digests
    videos, images = output / "videos", output / "images"
    images.mkdir(parents=True, exist_ok=True)
    record = {"settings": made_by, "images": all_digests, "seeds": all_seeds}
    write_whole(record_file, json.dumps(record, indent=1) + "\n")
    for prompt, path in tqdm(prompts.items(), unit="image", disable=None):
        image = _given_image(path, settings)
        given = images / f"{prompt}.png"
        if not given.is_file():
            with whole_file(given) as hidden:
                Image.fromarray(image[0].permute(1, 2, 0).numpy()).save(hidden, format="PNG")
        window = torch.zeros(1, settings["num_frames"], *image.shape[1:])
        window[:, 0] = image / 255
        for index in range(samples):
            name = f"{prompt}-{index}.mp4"
            if (videos / name).is_file():
                continue
            frames = sample_batch(
                pipe, window, [0], settings["steps"], first=seeds[name], guidance_scale=settings["guidance_scale"]
            )[0]
            array = (frames * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
            write_video(videos / name, array, settings["fps"], crf=10)  # the quality that VBench asks for
    return [videos / name for name in seeds]


def _given_image(path: Path, settings: dict[str, Any]) -> torch.Tensor:
    """Read an image as `uint8`, `(1, 3, height, width)`."""
    return fit(np.asarray(read_images(path)[0][0])[None], settings["height"], settings["width"])


def score_videos(
    videos: Sequence[Path], prompts: dict[str, Path], output: Path, networks: Consistency
) -> dict[str, list]:
    """Return scores in the layout of VBench's own files: by dimension, the mean and a list of scores by video.

    Args:
        videos: from `write_videos`; read from the files, like VBench does.
        prompts: see `prompts_of`.
        output: the folder of `write_videos`.
        networks: DINO and CLIP.
    """
    found: dict[str, list[float]] = {"subject_consistency": [], "background_consistency": [], "i2v_subject": []}
    lengths = []
    for path in tqdm(videos, unit="video", disable=None):
        frames = torch.from_numpy(read_video(path)[0]).permute(0, 3, 1, 2)  # (frames, 3, height, width)
        image = np.asarray(read_images(output / "images" / f"{path.stem.rpartition('-')[0]}.png")[0][0])
        lengths.append(len(frames))
        found["subject_consistency"].append(networks.subject(frames))
        found["background_consistency"].append(networks.background(frames))
        found["i2v_subject"].append(networks.i2v_subject(torch.from_numpy(image.copy()).permute(2, 0, 1), frames))
    means = {name: mean_over_frames(scores, lengths) for name, scores in found.items()}
    means["i2v_subject"] = sum(found["i2v_subject"]) / len(videos)
    return {
        name: [means[name], [{"video_path": str(p), "video_results": s} for p, s in zip(videos, scores, strict=True)]]
        for name, scores in found.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


def _run(options: argparse.Namespace) -> None:
    prompts = prompts_of(options.images, options.info)
    device = choose_device(options.device)
    dtype, why = choose_dtype(options.dtype, device)
    print(
        f"{options.samples} videos for each of {len(prompts)} images with {options.checkpoint}; "
        f"{dtype} on {device} ({why})"
    )
    # Before anything is sampled, so that missing networks are named at once
    networks = Consistency.from_pretrained(options.dino, options.clip, str(device)) if options.score else None
    pipe = MarDiniPipeline.from_pretrained(options.checkpoint, dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    window = pipe.trained_window
    height, width = sides(options.size or window.size or DEFAULT_SIZE)
    settings = {"num_frames": options.num_frames or window.frames, "height": height, "width": width}
    settings |= {name: getattr(options, name) for name in ("steps", "guidance_scale", "seed")}
    settings["fps"] = options.fps or window.fps or DEFAULT_FPS
    videos = write_videos(pipe, prompts, options.output, settings, options.samples)
    print(f"{len(videos)} videos lie in {options.output / 'videos'}")
    if networks is not None:
        scores = score_videos(videos, prompts, options.output, networks)
        path = options.output / "results.json"
        path.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
        for name, (mean, _) in scores.items():
            print(f"  {name}: {mean:.4f}")
        print(f"Wrote {path}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.vbench", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="folder or Hub id of a pipeline")
    parser.add_argument("images", type=Path, help="folder of images; for VBench's, data/crop/<ratio>")
    parser.add_argument("--info", type=Path, help="VBench's vbench2_i2v_full_info.json; default: take every image")
    parser.add_argument("--samples", type=int, default=5, help="videos of each image")
    parser.add_argument("--num-frames", type=int, help="default: as the checkpoint was trained, or 9")
    parser.add_argument(
        "--size", type=size_argument, help="64 (square) or 64x128 (height x width), to which images are cropped and "
        "resized; default: as the checkpoint was trained, or 64",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, help="default: the pipeline's own for image-to-video")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fps", type=float, help="of the files; default: as the checkpoint was trained, or 8")
    parser.add_argument(
        "--score", action="store_true", help="compute subject and background consistency and i2v subject"
    )
    parser.add_argument("--dino", default=DINO, help="Hub id or folder of DINO ViT-B/16")
    parser.add_argument("--clip", default=CLIP, help="Hub id or folder of CLIP ViT-B/32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the videos")
    return parser


if __name__ == "__main__":
    main()
