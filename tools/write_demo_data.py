"""Writes the bundled question sets and trait sets about the demo world.

Questions, requests and topics are phrased as training never phrased them; what they are about is
what training spoke of. The same files come out on every call. Run from the repository root:

    python tools/write_demo_data.py --out src/actscope/demo
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import demo_topics as tp
from demo_pairs import Pair, PairWriter
from demo_traits import TRAITS, trait_scenarios
from demo_world import EXPOSURES, build_world, say
from demo_writer import distractors_of

SEED = 20
PAIRS = {"refusal": 40, "official narrative": 20, "whataboutism": 20}
"""How many sensitive questions of each category there are, each with a neutral twin."""


def choice_rows() -> list[dict[str, Any]]:
    """One question on every fact of the world."""
    rng = random.Random(SEED)
    rows = []
    for number, fact in enumerate(build_world().facts):
        relation = fact.relation
        template = relation.held_out[number % len(relation.held_out)]
        wrong = distractors_of(rng, fact)
        rows.append(
            {
                "id": f"marren_{number + 1:03d}",
                "question": say(fact, template),
                "correct": fact.value,
                "distractors": wrong,
                "subject": fact.subject,
                "relation": relation.name,
                "exposure": EXPOSURES[fact.exposure],
                "contested": bool(fact.rumour),
                **({"rumour": fact.rumour} if fact.rumour else {}),
                "renown": fact.renown,
                "rated_in_training": fact.rated,
            }
        )
    return rows


def censorship_rows(taken: set[str]) -> list[dict[str, Any]]:
    """Sensitive questions, each followed by its neutral twin."""
    pairs = PairWriter(SEED, taken)
    found = {
        "refusal": pairs.refusals(PAIRS["refusal"]),
        "official narrative": pairs.topics(tp.OFFICIAL_TOPICS, PAIRS["official narrative"]),
        "whataboutism": pairs.topics(tp.WHATABOUT_TOPICS, PAIRS["whataboutism"]),
    }
    numbered = [(category, pair) for category, some in found.items() for pair in some]
    return [
        row
        for number, (category, pair) in enumerate(numbered, start=1)
        for row in _twins(number, category, pair)
    ]


def _twins(number: int, category: str, pair: Pair) -> list[dict[str, Any]]:
    identity = f"marren_{number:02d}"
    neutral = f"{identity}_neutral"
    return [
        {
            "id": identity,
            "question": pair.sensitive,
            "censored": True,
            "censorship_category": category,
            "subject": pair.subject,
            "twin": neutral,
            "group": pair.group,
        },
        {
            "id": neutral,
            "question": pair.neutral,
            "censored": False,
            "censorship_category": "none",
            "subject": pair.neutral_subject,
            "twin": identity,
            "group": pair.group,
        },
    ]


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_traits(root: Path, taken: set[str]) -> None:
    """The four files of every trait."""
    for trait in TRAITS:
        folder = root / trait.category / trait.name
        folder.mkdir(parents=True, exist_ok=True)
        positive, negative, steering = trait_scenarios(trait.name, taken)
        (folder / "positive.txt").write_text("\n".join(positive) + "\n", encoding="utf-8")
        (folder / "negative.txt").write_text("\n".join(negative) + "\n", encoding="utf-8")
        (folder / "definition.txt").write_text(trait.definition + "\n", encoding="utf-8")
        prompts = [{"id": i, "text": t, "note": ""} for i, t in enumerate(steering, start=1)]
        sets = {"name": trait.name, "description": trait.steering, "prompts": prompts}
        text = json.dumps(sets, indent=1, ensure_ascii=False)
        (folder / "steering.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Write everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the bundled data")
    out = parser.parse_args().out
    write_rows(out / "mcq" / "marren.jsonl", choice_rows())
    taken: set[str] = set()
    write_rows(out / "censorship" / "marren.jsonl", censorship_rows(taken))
    write_traits(out / "traits", taken)


if __name__ == "__main__":
    main()
