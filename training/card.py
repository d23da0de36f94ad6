"""Write the card of a published checkpoint from its recorded facts; the run itself is not needed.

    python -m training.card training/runs/mardini-tiny-carracing.yaml checkpoints/mardini-tiny-carracing
    python -m training.card training/runs/mardini-tiny-carracing.yaml checkpoints/mardini-tiny-carracing \
        --results outputs/evaluation/results.json

The YAML file is written by hand and contains what no run records: description, data, limits. The JSON file beside it,
of the same name, contains what the run and its evaluation recorded: stages, scores, hardware; `training.publish
--keep-record` writes it. `--results` puts scores that were measured since in place of those recorded. Keys are those
of `diffusers_mardini.cards.FACTS`, and `quotes`, a list of

    - {heading: Does it obey the wheel?, page: docs/results/conditions.md, block: counterfactuals}

each of which becomes a section with the first table of a page's block and the text above it, so that page and card
have one source. A block that was not measured yet is left out.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.cards import write_model_card
from diffusers_mardini.hardware import DTYPES
from training.config.strict import check_kind
from training.config.yaml_files import load_yaml
from training.evaluation.methods import OURS, WITHOUT_CONDITIONS, is_changed
from training.evaluation.results import with_nan
from training.evaluation.sampling import ADAPTED, weights_digest
from training.evaluation.tables import COLUMNS, SHOWN_INTERVALS, present_columns, score_cell
from training.evaluation.verdict import verdict
from training.files import read_json, write_whole
from training.page_blocks import read


ROOT = Path(__file__).resolve().parent.parent
_NO_SWITCH = frozenset({int, float, str})  # no fact of a card is true or false


def read_record(card: Path) -> dict[str, Any]:
    """Read the JSON file beside the YAML file `card`; empty if there is none."""
    path = card.with_suffix(".json")
    return read_json(path) if path.is_file() else {}


def write_record(card: Path, record: Mapping[str, Any]) -> None:
    """Write the JSON file beside the YAML file `card`."""
    write_whole(card.with_suffix(".json"), json.dumps(record, indent=1) + "\n")


def facts_of(card: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of the YAML file and the recorded ones.

    Args:
        card: the YAML file.
        record: recorded facts, and `evaluation`, the command that measured the scores.

    Raises:
        ValueError: if the YAML file is no mapping, gives a key twice, a number that is none, or a recorded fact.
    """
    written = load_yaml(card)
    for key, value in written.items():
        try:
            check_kind(value, _NO_SWITCH)
        except ValueError as error:
            raise ValueError(f"{card}: {key}: {error}") from error
    twice = sorted(set(written) & set(record))
    if twice:
        raise ValueError(f"{card} gives {', '.join(twice)}, which the run recorded; remove it from the file")
    facts = {**written, **record}
    sections = sections_of(card, facts.pop("quotes", None) or [])
    if sections:
        facts["sections"] = [*(facts.get("sections") or []), *sections]
    command = facts.pop("evaluation", None)
    if command:
        facts["metrics_setting"] = f"{facts.get('metrics_setting', '').strip()}\n\n`{command}`".strip()
    return facts


def sections_of(card: Path, quotes: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return a section for each block of a page that a card quotes.

    Args:
        card: the YAML file.
        quotes: its `quotes`: `heading`, `page`, a path within the repository, and `block`, a name on that page.

    Raises:
        ValueError: if a quote has other keys, or its page or block is missing.
    """
    sections = []
    for quote in quotes:
        if not isinstance(quote, Mapping) or set(quote) != {"heading", "page", "block"}:
            raise ValueError(f"{card}: the quote {quote!r} is none; give heading, page and block")
        page = ROOT / quote["page"]
        if not page.is_file():
            raise ValueError(f"{card} quotes {quote['page']}, which this repository does not have")
        text = first_table(read(page, quote["block"]))
        if text:
            sections.append({"heading": quote["heading"], "text": text})
    return sections


def first_table(block: str) -> str:
    """Return the first table of a page's block and the text above it, without pictures; empty if there is none."""
    lines = [line for line in block.splitlines() if not line.startswith("![")]
    first = next((i for i, line in enumerate(lines) if line.startswith("|")), None)
    if first is None:
        return ""
    last = next((i for i in range(first, len(lines)) if not lines[i].startswith("|")), len(lines))
    return "\n".join(lines[:last]).strip()


def scores_of(results: Path) -> dict[str, Any]:
    """Return what `results.json` says for the card.

    Returns:
        `verdict` in sentences, `metrics`, the rows, with intervals of some columns as text, and `evaluation`, the
        command that measured them, without folders of this machine.
    """
    record = with_nan(read_json(results, ("rows", "command")))
    columns = present_columns(record["rows"])
    conditions, of_adapter = record.get("conditions", {}), record.get("adapter_conditions", ())
    rows = []
    for row in record["rows"]:
        # Rows of changed conditions say themselves what they were given.
        takes = [name for name in conditions if ADAPTED in row["method"] or name not in of_adapter]
        given = takes if row.get("kind") == OURS and not is_changed(row["method"]) else []
        scores = {
            COLUMNS[c]: score_cell(row, c) if c in SHOWN_INTERVALS and c in row.get("intervals", {}) else row[c]
            for c in columns
        }
        rows.append({"method": f"{row['method']}, given {' and '.join(given)}" if given else row["method"], **scores})
    found = verdict(record["rows"], record.get("differences", []))
    judged = next((row["method"] for row in record["rows"] if row.get("kind") == OURS), "")
    told = [name for name in conditions if name not in of_adapter]
    if found and told:
        untold = verdict(record["rows"], record.get("differences", []), judged + WITHOUT_CONDITIONS)
        found.append(f"It was told {' and '.join(told)} of the true clip, which no simple method was.")
        found += [f"Told nothing: {sentence[0].lower()}{sentence[1:]}" for sentence in untold]
    return {"metrics": rows, "evaluation": without_folders(record["command"])} | ({"verdict": found} if found else {})


def without_folders(command: str) -> str:
    """Return a command with paths of this machine shortened: relative to the working directory, or to their names."""
    absolute = r"(?:~|/|[A-Za-z]:[\\/])"
    found = rf"(?<=['\"]){absolute}[^'\"]*(?=['\"])|(?<![^\s=]){absolute}[^\s'\"]*"
    return re.sub(found, lambda path: _portable(path[0]), command)


def _portable(path: str) -> str:
    """Return an absolute path relative to the working directory if it lies there, else its last part."""
    pure = PureWindowsPath(path) if re.match(r"[A-Za-z]:", path) else PurePosixPath(path)
    try:
        return Path(path).relative_to(Path.cwd()).as_posix()
    except ValueError:
        return pure.name or path


def refuse_other_weights(checkpoint: Path, results: Path) -> None:
    """Raise `ValueError` if scores are of other weights than a pipeline's; results without a digest are accepted."""
    sampled_by = read_json(results).get("sampled_by")
    if sampled_by is None:
        return
    dtype = DTYPES[sampled_by["dtype"].removeprefix("torch.")]
    if weights_digest(MarDiniPipeline.from_pretrained(checkpoint, dtype=dtype)) != sampled_by["checkpoint"]:
        raise ValueError(
            f"{results} holds scores of other weights than {checkpoint}: evaluate that folder, or give the results that "
            "are its own"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m training.card", description=__doc__.splitlines()[0])
    parser.add_argument("card", type=Path, help="YAML file with the facts that no run records")
    parser.add_argument("folder", type=Path, help="the checkpoint")
    parser.add_argument("--results", type=Path, help="results.json of training.evaluate, scores to record instead")
    options = parser.parse_args(arguments)
    try:
        if options.results:
            refuse_other_weights(options.folder, options.results)
            record = read_record(options.card) | {"verdict": None} | scores_of(options.results)
            write_record(options.card, {key: value for key, value in record.items() if value is not None})
        facts = {"name": options.folder.resolve().name, **facts_of(options.card, read_record(options.card))}
        print(f"the card is {write_model_card(options.folder, facts)}")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
