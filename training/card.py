"""Write the card of a published checkpoint from its recorded facts; the run itself is not needed.

    python -m training.card training/runs/mardini-tiny-carracing.yaml checkpoints/mardini-tiny-carracing

The YAML file is written by hand and contains what no run records: description, data, limits. The JSON file beside it,
of the same name, contains what the run and its evaluation recorded: stages, scores, hardware; `training.publish
--keep-record` writes it. Keys are those of `diffusers_mardini.cards.FACTS`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers_mardini.cards import write_model_card
from training.config.strict import check_kind
from training.config.yaml_files import load_yaml
from training.files import read_json


_NO_SWITCH = frozenset({int, float, str})  # no fact of a card is true or false


def read_record(card: Path) -> dict[str, Any]:
    """Read the JSON file beside the YAML file `card`; empty if there is none."""
    path = card.with_suffix(".json")
    return read_json(path) if path.is_file() else {}


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
    command = facts.pop("evaluation", None)
    if command:
        facts["metrics_setting"] = f"{facts.get('metrics_setting', '').strip()}\n\n`{command}`".strip()
    return facts


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m training.card", description=__doc__.splitlines()[0])
    parser.add_argument("card", type=Path, help="YAML file with the facts that no run records")
    parser.add_argument("folder", type=Path, help="the checkpoint")
    options = parser.parse_args(arguments)
    try:
        facts = {"name": options.folder.resolve().name, **facts_of(options.card, read_record(options.card))}
        print(f"the card is {write_model_card(options.folder, facts)}")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
