"""What robust training buys: methods with and without it, under attacks on the prompt.

Run: `python benchmarks/robust.py`; goes on where results/robust.json ends, then prints the table.
On "ghost", trained and drawn in bfloat16 autocast, in the model's own 20 sampling steps: forget and
retain accuracy, and the success of a prefix of words, of a prefix of free vectors, which no user
can type but which shows what is left to find, and of concept inversion.
"""

import argparse
from pathlib import Path
from typing import Any

from canvas_bench import Bench, bfloat16, erased, in_force, opened, target_of
from ledger import Ledger

from erase.attacks import attacks
from erase.attacks.concept_inversion import ConceptInversionConfig
from erase.attacks.prefix import PrefixConfig
from erase.evaluate.pictures.generation import EvaluationConfig, draw_evaluation, judge_drawn
from erase.evaluate.pictures.judges import judge_of
from erase.evaluate.reports import ACCURACIES, wilson_share
from erase.prompts.catalogue import Concept
from erase.prompts.request import EraseRequest, expand
from erase.tasks.diffusion.adversaries.prefix import Prefix

RESULTS = Path(__file__).parent / "results" / "robust.json"
ATTACKS = {
    "prefix of words": ("prefix", PrefixConfig()),
    "prefix of free vectors": ("prefix", PrefixConfig(hard=False)),
    "concept inversion": (
        "concept_inversion",
        ConceptInversionConfig(steps=200, batch_size=8, learning_rate=5e-3),
    ),
}


def open_bench() -> Bench:
    """The bench of one concept, without an oracle."""
    model = opened("emoji", "bf16")
    prompts = expand(EraseRequest(["ghost"]), model.catalogue)
    ghost = [Concept("ghost", "object")]
    return Bench(
        [["ghost"]],
        ghost,
        model,
        judge_of("", model.catalogue),
        prompts,
        {},
        None,
        [],
        [],
        1,
        "bf16",
    )


def run_row(bench: Bench, method: str, adversary: int, seed: int) -> dict[str, Any]:
    """Accuracies, attacks' success and seconds of the method alone."""
    pipeline, prompts = bench.model.pipeline, bench.prompts
    target_of(bench, seed)
    erasures, seconds = erased(bench, method, adversary, seed)
    with in_force(erasures, pipeline), bfloat16():
        drawn = draw_evaluation(
            pipeline, prompts, bench.model.sampling, EvaluationConfig(), "judging"
        )
        metrics = judge_drawn(drawn, bench.judge, prompts.labels).to_json()
        target = target_of(bench, seed).with_pipeline(pipeline)
        hits = {
            name: wilson_share(attacks()[attack](target, config).hits).to_json()
            for name, (attack, config) in ATTACKS.items()
        }
    return {"seconds": seconds, "attacks": hits} | {name: metrics[name] for name in ACCURACIES}


def table(ledger: Ledger, methods: list[str], steps: list[int], seeds: list[int]) -> str:
    """One line a method and number of adversary steps: means over seeds, in per cent."""
    head = ["method", "adversary steps", "forget", "retain", "cross-retain", *ATTACKS, "seconds"]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for method in methods:
        for adversary in steps:
            runs = [ledger[method, adversary, seed] for seed in seeds]
            shares = [[run[name]["value"] for run in runs] for name in ACCURACIES]
            shares += [[run["attacks"][name]["value"] for run in runs] for name in ATTACKS]
            cells = [f"{100 * sum(share) / len(share):.1f}" for share in shares]
            seconds = sum(run["seconds"] for run in runs) / len(runs)
            lines.append(f"| {method} | {adversary} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="*", default=["salun"])
    parser.add_argument("--steps", nargs="*", type=int, default=[0, 4])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    args = parser.parse_args()
    bench, ledger = open_bench(), Ledger(RESULTS)
    ledger.require({"adversary_reach": Prefix.usual_reach})
    for seed in args.seeds:
        for method in args.methods:
            for adversary in args.steps:
                if (key := (method, adversary, seed)) not in ledger:
                    ledger[key] = run_row(bench, *key)
                    print(*key, ledger[key], flush=True)
    print(table(ledger, args.methods, args.steps, args.seeds))


if __name__ == "__main__":
    main()
