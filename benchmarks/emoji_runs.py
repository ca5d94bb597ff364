"""Erase ten objects and three styles, drawn with a fixed seed, one `erase run` each.

Run: `python benchmarks/emoji_runs.py --out runs/bench [--method salun] [--salun.mask=random]`; goes
on where it stopped and writes table.md from the reports.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

from erase.bundled import EMOJI
from erase.prompts.catalogue import Catalogue

SEED = 2026
OBJECTS, STYLES = 10, 3
HEADER = """| concept | forget | retain base | retain | cross base | cross | seconds | MB |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def chosen_concepts(catalogue: Catalogue) -> list[str]:
    """The objects and styles that a fixed seed picks."""
    rng = random.Random(SEED)
    styles = [f"{name} style" for name in rng.sample(list(catalogue.styles), STYLES)]
    return styles + rng.sample(list(catalogue.objects), OBJECTS)


def row(concept: str, report: dict) -> str:
    """One line of the table."""
    metrics, cost = report["metrics"], report["cost"]
    figures = [metrics["forget_accuracy"]["value"]]
    for name in ("retain_accuracy", "cross_retain_accuracy"):
        figures += [metrics["base"][name]["value"], metrics[name]["value"]]
    cells = " | ".join(f"{100 * figure:.1f}" for figure in figures)
    megabytes = cost["artefact_bytes"] / 1e6
    return f"| {concept} | {cells} | {cost['seconds']:.0f} | {megabytes:.2f} |\n"


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--method", default="salun")
    args, extra = parser.parse_known_args()
    table = HEADER
    for concept in chosen_concepts(Catalogue.of_model(EMOJI)):
        output = args.out / "".join([concept.replace(" ", "-"), "-", args.method, *extra])
        if not (output / "report.json").exists():
            command = [sys.executable, "-m", "erase", "run", "--concept", concept]
            command += ["--method", args.method, "--output", str(output), *extra]
            subprocess.run(command, check=True)
        table += row(concept, json.loads((output / "report.json").read_text(encoding="utf-8")))
        (args.out / "table.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
