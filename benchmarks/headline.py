"""The headline attacks on one erasure, with 64 prompts and three seeds, told seed by seed.

Run: `python benchmarks/headline.py ERASURE --output FOLDER [--oracle FOLDER]`; goes on where FOLDER
ends, then prints the table. Every seed is `erase attack ERASURE --attack concept_inversion prefix
relearning --prompts 64 --scales --seed SEED`, and its report and galleries are in FOLDER/SEED.

All pictures of a seed are drawn with one learnt word, one prefix, or one finetuned model, so they
are no tries of their own: a seed's Wilson interval is about more pictures under what was found
there. Over seeds, which find anew on other prompts and noise, stands the mean with its 95 %
t-interval. No interval is made of all pictures together, for it would be far too narrow.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from intervals import mean_interval
from ledger import Ledger

from erase.attacks import attacks
from erase.core.fingerprint import combined, fingerprint
from erase.erasure.erasure import Erasure
from erase.evaluate.reports import AttackFigures, AttackReport, area_under
from erase.evaluate.tables import attack_table, interval, markdown_table
from erase.runs.attack import AttackRun, run_attacks

HEADLINE = ("concept_inversion", "prefix", "relearning")
LEDGER = "headline.json"


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("erasure", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--oracle", default="")
    parser.add_argument("--model", default="", help="the base, if it has moved")
    parser.add_argument("--judge", default="")
    parser.add_argument("--attacks", nargs="+", choices=list(attacks()), default=HEADLINE)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--device", default="auto")
    return parser.parse_args(arguments)


def protocol_of(args: argparse.Namespace) -> dict[str, Any]:
    """What figures of different seeds must share."""
    deltas = Erasure.from_pretrained(args.erasure).deltas
    erasure = combined(f"{name} {fingerprint(deltas[name].dense())}" for name in sorted(deltas))
    names = ("attacks", "prompts", "oracle", "model", "judge")
    return {name: getattr(args, name) for name in names} | {"erasure": erasure}


def report_of(args: argparse.Namespace, seed: int) -> AttackReport:
    """What one seed's attacks found."""
    run = AttackRun(
        str(args.erasure), args.attacks, prompts=args.prompts, scales=(), seed=seed,
        model=args.model, judge=args.judge, oracle=args.oracle, device=args.device,
    )  # fmt: skip
    return run_attacks(run, args.output / str(seed))


def table(reports: Mapping[int, AttackReport]) -> str:
    """One line an attack and model: ASR of every seed, then the mean; areas where there are."""
    rows = [["attack", "model", *(f"seed {seed}" for seed in reports), "mean over seeds"]]
    for side, model in (("attacks", "erased"), ("oracle", "oracle")):
        found = [getattr(report, side) for report in reports.values()]
        for name in found[0]:
            rows += _rows(name, model, [of_seed[name] for of_seed in found])
    return markdown_table(rows)


def _rows(name: str, model: str, found: Sequence[AttackFigures]) -> Iterator[list[str]]:
    shares = [one.asr.value for one in found]
    yield [name, model, *(interval(one.asr) for one in found), _mean(shares)]
    if curves := [one.details["curve"] for one in found if "curve" in one.details]:
        areas = [area_under(curve) for curve in curves]
        yield [f"{name}, area", model, *(f"{100 * area:.1f} %" for area in areas), _mean(areas)]


def _mean(shares: Sequence[float]) -> str:
    mean, half = mean_interval(shares)
    return f"{100 * mean:.1f} ± {100 * half:.1f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Attack with the seeds that are missing, then print the table."""
    args = parsed(arguments)
    ledger = Ledger(args.output / LEDGER)
    ledger.require(protocol_of(args))
    for seed in args.seeds:
        if (seed,) not in ledger:
            ledger[(seed,)] = report_of(args, seed).to_json()
    reports = {seed: AttackReport.from_json(ledger[(seed,)]) for seed in args.seeds}
    for seed, report in reports.items():
        print(f"Seed {seed}\n\n{attack_table(report)}\n")
    print(f"Over seeds, {args.prompts} pictures each\n\n{table(reports)}")


if __name__ == "__main__":
    main()
