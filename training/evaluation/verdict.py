"""Say in words what an evaluation found: better than which simple method, by how much, worse or the same as which.

A difference counts if the 95% interval of the paired difference over clips does not include zero. The rows and
differences come from `scores.py`, or from `results.json`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from training.evaluation.intervals import SURE
from training.evaluation.methods import BASELINE, CEILING, OURS
from training.evaluation.tables import COLUMNS, DIGITS


JUDGED = {"mid_ssim": 1, "mid_lpips": -1}  # 1: more is better; -1: less is better
BETTER, WORSE, SAME, UNKNOWN = "better", "worse", "same", "unknown"


def verdict(
    rows: Sequence[Mapping[str, Any]], differences: Sequence[Mapping[str, Any]], method: str | None = None
) -> list[str]:
    """Return sentences on a method beside the simple ones; the first sums up. Empty if there is nothing to compare.

    Args:
        rows: of `results.json`.
        differences: of `results.json`.
        method: name of the row that is judged; by default the first of ours.
    """
    ours = [row for row in rows if row.get("kind") == OURS and method in (None, row["method"])]
    if not ours:
        return []
    judged = standings(rows, differences, ours[0]["method"])
    if not judged:
        return []
    scores = list(dict.fromkeys(score for score, *_ in judged))
    clips = min((each["clips"] for each in differences if "clips" in each), default=SURE)
    sentences = [_summary(ours[0]["method"], judged, clips)]
    sentences += [_on_score(ours[0], score, [each for each in judged if each[0] == score]) for score in scores]
    room = _room(rows, ours[0], scores[0])
    kept = [
        f"{name} {ours[0][name]:.2f}" for name in ("motion", "sharpness") if math.isfinite(ours[0].get(name, math.nan))
    ]
    return sentences + ([room] if room else []) + ([f"Beside the true clips' 1: {', '.join(kept)}."] if kept else [])


def standings(
    rows: Sequence[Mapping[str, Any]], differences: Sequence[Mapping[str, Any]], method: str
) -> list[tuple[str, str, str, str]]:
    """Return for each judged score and simple method `(score, simple method, standing, difference as text)`.

    A standing is `BETTER`, `WORSE`, `SAME` (the interval includes zero) or `UNKNOWN` (there is no interval, or it rests
    on fewer clips than `SURE`).
    """
    simple = [row["method"] for row in rows if row.get("kind") == BASELINE]
    found = {each["than"]: each for each in differences if each["method"] == method}
    judged = []
    for score, sign in JUDGED.items():
        for name in simple:
            if name not in found or score not in found[name]["difference"]:
                continue
            difference, (low, high) = found[name]["difference"][score], found[name]["intervals"][score]
            digits = DIGITS[score]
            if not (math.isfinite(low) and math.isfinite(high)):
                judged.append((score, name, UNKNOWN, f"{difference:+.{digits}f}"))
                continue
            text = f"{difference:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
            if found[name].get("clips", SURE) < SURE:
                judged.append((score, name, UNKNOWN, text))
                continue
            is_better = low > 0 if sign > 0 else high < 0
            is_worse = high < 0 if sign > 0 else low > 0
            judged.append((score, name, BETTER if is_better else WORSE if is_worse else SAME, text))
    return judged


def _summary(method: str, judged: Sequence[tuple[str, str, str, str]], clips: int) -> str:
    found = {standing for _, _, standing, _ in judged}
    if found == {BETTER}:
        return f"Better than every simple method: {method}."
    if UNKNOWN in found:
        if clips in (1, SURE):
            return f"Not decided, since the windows are of one clip and have no intervals: {method}."
        return f"Not decided, since {clips} clips are too few, hold out {SURE} or more: {method}."
    if BETTER not in found:
        return f"Not better than any simple method: {method}."
    scores = dict.fromkeys(score for score, *_ in judged)
    beaten = [
        name
        for name in dict.fromkeys(name for _, name, _, _ in judged)
        if all((score, name, BETTER) in {each[:3] for each in judged} for score in scores)
    ]
    only = f"better than {_list(beaten)} in all that was judged" if beaten else "better in some scores alone"
    return f"Not better than every simple method, but {only}: {method}."


def _on_score(row: Mapping[str, Any], score: str, judged: Sequence[tuple[str, str, str, str]]) -> str:
    clauses = []
    for standing, words in ((BETTER, "better than"), (WORSE, "worse than"), (SAME, "the same, within noise, as")):
        names = [f"{name} ({text})" for _, name, found, text in judged if found == standing]
        clauses += [f"{words} {_list(names)}"] if names else []
    names = [f"{name} ({text})" for _, name, found, text in judged if found == UNKNOWN]
    clauses += [f"beside {_list(names)}, which is not decided"] if names else []
    return f"{COLUMNS[score]} {row[score]:.{DIGITS[score]}f}: {'; '.join(clauses)}."


def _room(rows: Sequence[Mapping[str, Any]], ours: Mapping[str, Any], score: str) -> str:
    """Say how much room the autoencoder leaves above the best simple method, and how much of it is used."""
    ceiling = next((row[score] for row in rows if row.get("kind") == CEILING), math.nan)
    best = max((row for row in rows if row.get("kind") == BASELINE), key=lambda row: JUDGED[score] * row[score])
    room, digits = (ceiling - best[score]) * JUDGED[score], DIGITS[score]
    if not math.isfinite(room):
        return ""
    where = f"the autoencoder alone reaches {COLUMNS[score]} {ceiling:.{digits}f}, "
    where += f"{best['method']} {best[score]:.{digits}f}"
    if room <= 0:
        return f"There is no room to be better: {where}."
    used = (ours[score] - best[score]) * JUDGED[score] / room
    return f"Of the room that the simple methods leave, {max(0.0, used):.0%} is used: {where}."


def _list(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
