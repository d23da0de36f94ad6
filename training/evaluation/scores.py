"""Sample and score every method; finished parts are saved.

The scores are defined in `metrics.py` and `networks/`, their intervals in `intervals.py`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from training.evaluation.evaluation_windows import EvaluationWindows, to_bytes
from training.evaluation.finished_parts import FinishedParts
from training.evaluation.intervals import Bootstrap
from training.evaluation.methods import BASELINE, OURS, Method
from training.evaluation.metrics import generated_indices, middle_index, score_windows, summarize
from training.evaluation.networks.frechet import Features, frechet_distance
from training.evaluation.networks.loading import Networks
from training.evaluation.networks.lpips import Lpips


FORMAT = 2  # increment when the same key would give other frames or scores than those saved
COMPARED = ("mid_ssim", "mid_psnr", "mid_lpips", "ssim", "psnr", "lpips", "motion", "sharpness")


class Evaluation:
    """The scoring of methods on the same windows.

    Args:
        windows: to be scored.
        given: positions of the given frames.
        networks: for the scores that need some.
        finished: the parts that are done already.
    """

    def __init__(self, windows: EvaluationWindows, given: Sequence[int], networks: Networks, finished: FinishedParts):
        self.windows, self.given, self.networks, self.finished = windows, list(given), networks, finished
        # Rounded as a file rounds it, like the sampled frames.
        self.truth = to_bytes(windows.frames).float() / 255
        self.generated = generated_indices(self.truth.shape[1], given)
        self.key = {"format": FORMAT, "windows": windows.digest(), "given": self.given}
        self.bootstrap = Bootstrap(windows.wholes or windows.clips)
        self._truth_features: dict[str, torch.Tensor] = {}

    def run(
        self, methods: Sequence[Method]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, torch.Tensor]]:
        """Return all rows of the table, paired differences, and the sampled frames of the first seed by method.

        Differences are between ours and the baselines, and between ours and the same with altered planning signals.
        """
        rows, sampled, scores = [], {}, {}
        total = sum(len(self.truth) * len(method.seeds) for method in methods)
        with tqdm(total=total, unit="window", disable=None) as bar:
            for method in methods:
                bar.set_description(method.name)
                frames, seconds = zip(*[self.sample(method, seed, bar) for seed in method.seeds])
                sampled[method.name] = frames[0]
                by_seed = [self.score(method, seed, frame) for seed, frame in zip(method.seeds, frames, strict=True)]
                row, scores[method.name] = self.row(method, by_seed, frames, sum(seconds) / len(seconds))
                rows.append(row)
                tqdm.write(f"  {method.name}: mid SSIM {row['mid_ssim']:.3f}, motion {row['motion']:.2f}")
        pairs = [
            (method.name, other.name)
            for method in methods
            if method.kind == OURS
            for other in methods
            if other.kind == BASELINE
        ]
        pairs += [(method.unaltered, method.name) for method in methods if method.unaltered]
        differences = [paired_difference(method, other, scores, self.bootstrap) for method, other in pairs]
        return rows, differences, sampled

    def sample(self, method: Method, seed: int, bar: tqdm | None = None) -> tuple[torch.Tensor, float]:
        """Return all windows of one sample in [0, 1], rounded as a file rounds them, and the seconds per window."""
        frames, seconds = [], 0.0
        for first, last in method.batches:

            def make() -> dict[str, torch.Tensor]:
                start = time.perf_counter()
                batch = method.sample(self.truth[first:last], self.given, first, seed)
                spent = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
                return {"frames": to_bytes(batch), "seconds": spent}

            tensors = self.finished.get(self._sampled(method, seed), first, last, make)
            frames.append(tensors["frames"])
            seconds += tensors["seconds"].item()
            if bar is not None:
                bar.update(last - first)
        return torch.cat(frames).float() / 255, seconds / len(self.truth)

    def score(self, method: Method, seed: int, frames: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scores of each window: float tensors `(windows,)` by name."""

        def lpips(network: Lpips) -> dict[str, torch.Tensor]:
            pairs = zip(
                frames[:, self.generated].flatten(0, 1).split(16),
                self.truth[:, self.generated].flatten(0, 1).split(16),
            )
            each = torch.cat([network(one, other) for one, other in pairs]).view(len(frames), -1)  # (windows, sampled)
            middle = self.generated.index(middle_index(self.truth.shape[1], self.given))
            return {"mid_lpips": each[:, middle], "lpips": each.mean(dim=1)}

        result = self._finished(method, seed, "windows", {}, lambda: score_windows(frames, self.truth, self.given))
        for trunk, network in self.networks.lpips.items():
            found = self._finished(
                method, seed, f"lpips-{trunk}", network.sources, lambda network=network: lpips(network)
            )
            suffix = "" if trunk == "alex" else f"_{trunk}"
            result |= {f"{name}{suffix}": values for name, values in found.items()}
        return result

    def distance(self, column: str, method: Method, seed: int, frames: torch.Tensor) -> float:
        """Return the Fréchet distance of one sample of all windows to the true ones."""
        features = self.networks.features[column]

        def features_of(of: Method | None, windows: torch.Tensor) -> torch.Tensor:
            def make() -> dict[str, torch.Tensor]:
                return {"features": self._extract(features, windows)}

            return self._finished(of, seed if of else 0, column, features.sources, make)["features"]

        if column not in self._truth_features:
            self._truth_features[column] = features_of(None, self.truth)
        return frechet_distance(features_of(method, frames), self._truth_features[column], features.components)

    def row(
        self, method: Method, by_seed: list[dict[str, torch.Tensor]], frames: Sequence[torch.Tensor], seconds: float
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return the row of a method in `results.json`, and the means over seeds of the scores of each window."""
        mean = {name: torch.stack([scores[name] for scores in by_seed]).mean(dim=0) for name in by_seed[0]}
        seeds = {name: [summarize(scores)[name] for scores in by_seed] for name in summarize(mean)}
        distances = {
            column: [
                self.distance(column, method, seed, frame) for seed, frame in zip(method.seeds, frames, strict=True)
            ]
            for column in self.networks.features
        }
        values = summarize(mean) | {column: sum(found) / len(found) for column, found in distances.items()}
        seeds |= distances
        row = {
            "method": method.name,
            "kind": method.kind,
            **method.facts,
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
            return features.extract_all(windows)
        return features.extract_all(windows[:, self.generated].flatten(0, 1))  # (windows * sampled, 3, height, width)

    def _sampled(self, method: Method | None, seed: int) -> dict[str, Any]:
        own = {"method": "truth"} if method is None else method.key
        return {**self.key, "variant": own, "seed": seed}

    def _finished(
        self,
        method: Method | None,
        seed: int,
        scores: str,
        sources: Mapping[str, str],
        make: Callable[[], dict[str, torch.Tensor]],
    ) -> dict[str, torch.Tensor]:
        batches = [] if method is None else method.batches
        key = {**self._sampled(method, seed), "batches": batches, "scores": scores, "networks": dict(sources)}
        return self.finished.get(key, 0, len(self.truth), make)


def paired_difference(
    method: str, other: str, scores: Mapping[str, dict[str, torch.Tensor]], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Return how much more a method scores than another on the same windows, with the interval of the difference.

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
        "clips": bootstrap.count,
        "difference": {name: means[0][name] - means[1][name] for name in names},
        "intervals": {name: bootstrap.difference(one, two, name) for name in names},
    }
