"""Samples every variant and scores it; what is done is kept."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm

from training.evaluation.finished_parts import Kept
from training.evaluation.intervals import Bootstrap
from training.evaluation.methods import BASELINE, OURS, Variant
from training.evaluation.metrics import generated_indices, middle_index, score_windows, summarize
from training.evaluation.networks.frechet import Features, frechet_distance
from training.evaluation.networks.lpips import Lpips
from training.evaluation.windows import Windows, to_bytes


FORMAT = 2  # of what is kept: raised where the frames or the scores of the same key become others
COMPARED = ("mid_ssim", "mid_psnr", "mid_lpips", "ssim", "psnr", "lpips", "motion", "sharpness")


@dataclass(frozen=True)
class Networks:
    """Published networks that were found.

    Attributes:
        lpips: by trunk.
        features: of the Fréchet distances, by column.
    """

    lpips: Mapping[str, Lpips]
    features: Mapping[str, Features]

    @property
    def sources(self) -> dict[str, str]:
        """Digests of the files that were loaded, by name."""
        return {
            k: v for network in (*self.lpips.values(), *self.features.values()) for k, v in network.sources.items()
        }


class Evaluation:
    """Windows, what is given of them, and where results are kept.

    Args:
        windows: to be scored.
        given: positions of the given frames.
        networks: for the scores that need some.
        kept: what is done already.
    """

    def __init__(self, windows: Windows, given: Sequence[int], networks: Networks, kept: Kept):
        self.windows, self.given, self.networks, self.kept = windows, list(given), networks, kept
        # What is compared with is what a file would hold, as what is sampled is.
        self.truth = to_bytes(windows.frames).float() / 255
        self.generated = generated_indices(self.truth.shape[1], given)
        self.key = {"format": FORMAT, "windows": windows.digest(), "given": self.given}
        self.bootstrap = Bootstrap(windows.clips)
        self._truth_features: dict[str, torch.Tensor] = {}

    def run(
        self, variants: Sequence[Variant]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, torch.Tensor]]:
        """All rows of the table, paired differences, and the sampled frames of the first seed by method.

        Differences are those between ours and the baselines, and between ours and the same with another plan.
        """
        rows, sampled, scores = [], {}, {}
        total = sum(len(self.truth) * len(variant.seeds) for variant in variants)
        with tqdm(total=total, unit="window", disable=None) as bar:
            for variant in variants:
                bar.set_description(variant.method)
                frames, seconds = zip(*[self.sample(variant, seed, bar) for seed in variant.seeds])
                sampled[variant.method] = frames[0]
                by_seed = [self.score(variant, seed, frame) for seed, frame in zip(variant.seeds, frames, strict=True)]
                row, scores[variant.method] = self.row(variant, by_seed, frames, sum(seconds) / len(seconds))
                rows.append(row)
                tqdm.write(f"  {variant.method}: mid SSIM {row['mid_ssim']:.3f}, motion {row['motion']:.2f}")
        pairs = [
            (variant.method, other.method)
            for variant in variants
            if variant.kind == OURS
            for other in variants
            if other.kind == BASELINE
        ]
        pairs += [(variant.planned, variant.method) for variant in variants if variant.planned]
        differences = [paired_difference(method, other, scores, self.bootstrap) for method, other in pairs]
        return rows, differences, sampled

    def sample(self, variant: Variant, seed: int, bar: tqdm | None = None) -> tuple[torch.Tensor, float]:
        """All windows of one sample in [0, 1], rounded as a file rounds them, and the seconds that each took."""
        frames, seconds = [], 0.0
        for first, last in variant.batches:

            def make() -> dict[str, torch.Tensor]:
                start = time.perf_counter()
                batch = variant.sample(self.truth[first:last], self.given, first, seed)
                spent = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
                return {"frames": to_bytes(batch), "seconds": spent}

            tensors = self.kept.get(self._sampled(variant, seed), first, last, make)
            frames.append(tensors["frames"])
            seconds += tensors["seconds"].item()
            if bar is not None:
                bar.update(last - first)
        return torch.cat(frames).float() / 255, seconds / len(self.truth)

    def score(self, variant: Variant, seed: int, frames: torch.Tensor) -> dict[str, torch.Tensor]:
        """The scores of each window: float tensors `(windows,)` by name."""

        def lpips(network: Lpips) -> dict[str, torch.Tensor]:
            pairs = zip(
                frames[:, self.generated].flatten(0, 1).split(16),
                self.truth[:, self.generated].flatten(0, 1).split(16),
            )
            each = torch.cat([network(one, other) for one, other in pairs]).view(len(frames), -1)  # (windows, sampled)
            middle = self.generated.index(middle_index(self.truth.shape[1], self.given))
            return {"mid_lpips": each[:, middle], "lpips": each.mean(dim=1)}

        result = self._kept(variant, seed, "windows", {}, lambda: score_windows(frames, self.truth, self.given))
        for trunk, network in self.networks.lpips.items():
            found = self._kept(
                variant, seed, f"lpips-{trunk}", network.sources, lambda network=network: lpips(network)
            )
            suffix = "" if trunk == "alex" else f"_{trunk}"
            result |= {f"{name}{suffix}": values for name, values in found.items()}
        return result

    def distance(self, column: str, variant: Variant, seed: int, frames: torch.Tensor) -> float:
        """The Fréchet distance of one sample of all windows to the true ones."""
        features = self.networks.features[column]

        def kept(of: Variant | None, windows: torch.Tensor) -> torch.Tensor:
            def make() -> dict[str, torch.Tensor]:
                return {"features": self._extract(features, windows)}

            return self._kept(of, seed if of else 0, column, features.sources, make)["features"]

        if column not in self._truth_features:
            self._truth_features[column] = kept(None, self.truth)
        return frechet_distance(kept(variant, frames), self._truth_features[column], features.components)

    def row(
        self, variant: Variant, by_seed: list[dict[str, torch.Tensor]], frames: Sequence[torch.Tensor], seconds: float
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """What `results.json` says of a variant, and the means over seeds of the scores of each window."""
        mean = {name: torch.stack([scores[name] for scores in by_seed]).mean(dim=0) for name in by_seed[0]}
        seeds = {name: [summarize(scores)[name] for scores in by_seed] for name in summarize(mean)}
        distances = {
            column: [
                self.distance(column, variant, seed, frame) for seed, frame in zip(variant.seeds, frames, strict=True)
            ]
            for column in self.networks.features
        }
        values = summarize(mean) | {column: sum(found) / len(found) for column, found in distances.items()}
        seeds |= distances
        row = {
            "method": variant.method,
            "kind": variant.kind,
            **values,
            "intervals": {name: self.bootstrap.interval(mean, name) for name in summarize(mean)},
            "seeds": seeds,
            "spread": {name: torch.tensor(found).std().item() for name, found in seeds.items() if len(found) > 1},
            "seconds_per_window": seconds,
            "windows": {name: [round(value, 6) for value in found.tolist()] for name, found in mean.items()},
        }
        return row, mean

    def _extract(self, features: Features, windows: torch.Tensor) -> torch.Tensor:
        if features.per == "window":
            return torch.cat([features.extract(batch) for batch in windows.split(4)])
        frames = windows[:, self.generated].flatten(0, 1)  # (windows * sampled, 3, height, width)
        return torch.cat([features.extract(batch) for batch in frames.split(16)])

    def _sampled(self, variant: Variant | None, seed: int) -> dict[str, Any]:
        own = {"method": "truth"} if variant is None else variant.key
        return {**self.key, "variant": own, "seed": seed}

    def _kept(
        self,
        variant: Variant | None,
        seed: int,
        what: str,
        sources: Mapping[str, str],
        make: Callable[[], dict[str, torch.Tensor]],
    ) -> dict[str, torch.Tensor]:
        batches = [] if variant is None else variant.batches
        key = {**self._sampled(variant, seed), "batches": batches, "scores": what, "networks": dict(sources)}
        return self.kept.get(key, 0, len(self.truth), make)


def paired_difference(
    method: str, other: str, scores: Mapping[str, dict[str, torch.Tensor]], bootstrap: Bootstrap
) -> dict[str, Any]:
    """How much more a method scores than another on the same windows, with the interval of the difference.

    Args:
        method, other: names in `scores`.
        scores: of each method by name, `(windows,)`.
        bootstrap: of the clips of the windows.
    """
    one, two = scores[method], scores[other]
    names = [name for name in COMPARED if name in one and name in two]
    means = summarize(one), summarize(two)
    return {
        "method": method,
        "than": other,
        "difference": {name: means[0][name] - means[1][name] for name in names},
        "intervals": {name: bootstrap.difference(one, two, name) for name in names},
    }
