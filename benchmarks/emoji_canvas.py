"""EmojiCanvas bench: methods beside the base and a model retrained without the concepts.

Run: `python benchmarks/emoji_canvas.py --concepts ghost --oracle FOLDER`, where FOLDER is a
pipeline that `scripts/train_emoji.py diffusion --exclude-objects ghost --out ...` trained. Several
concepts are erased at once, or in turn with --sequential. For every row and seed: UA, IRA and CRA
over every object in every style, the distance to the oracle, how often prompts that never use
the trained words (indirect.json) bring a concept, and the success of every attack. Goes on where
--results ends, which is of one oracle for the concepts and one set of attacks, then prints the
table; heat-maps of the first seed go to --pictures. A method's seconds include drawing its sets.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from ledger import Ledger

from erase.attack_runner import build_target
from erase.attacks import attacks
from erase.attacks.base import Target
from erase.bundled.canvas import EmojiCanvas, Placement
from erase.catalogue import Catalogue, Concept
from erase.core.fingerprint import module_fingerprint
from erase.erasure import Erasure
from erase.evaluate.classification import mean_interval
from erase.evaluate.clip import ClipJudge, proportion
from erase.evaluate.generation import EvaluationConfig
from erase.evaluate.matrix import canvas_matrix, save_heat_maps, ua_ira_cra
from erase.evaluate.oracle import Captioned, Observation, distance_to_oracle, observe
from erase.methods import methods
from erase.models import Model, load_model
from erase.request import EraseRequest, PromptSet, expand, find_concept
from erase.runner import judge_of
from erase.tasks.diffusion import DiffusionTask, DiffusionTaskConfig
from erase.tasks.sampling import draw

INDIRECT = json.loads((Path(__file__).parent / "indirect.json").read_text())
INDIRECT_SEEDS = range(9_500_000, 9_500_008)
RESULTS = Path(__file__).parent / "results" / "emoji_canvas.json"
REAL_SEED, REAL_PICTURES, ATTACKED = 0, 64, 16
REFERENCES = ("base", "oracle")


@dataclass(frozen=True)
class Row:
    """A method with its defaults, and what the task is told."""

    method: str
    task: DiffusionTaskConfig = field(default_factory=DiffusionTaskConfig)


NAMES = (
    "salun", "salun_soft", "salun_lora", "projection", "uce", "rece", "esd", "concept_ablation",
    "neggrad_plus", "gradient_ascent",
)  # fmt: skip
ROWS = {name: Row(name) for name in NAMES} | {
    "salun, robust": Row("salun", DiffusionTaskConfig(adversary_steps=4))
}


@dataclass(frozen=True)
class Bench:
    """What every row is measured with."""

    asked: Sequence[Sequence[str]]  # what is erased at once, then what next
    concepts: Sequence[Concept]
    model: Model
    judge: ClipJudge
    prompts: PromptSet
    real: dict[str, Captioned]
    oracle: Observation | None
    evaluation: EvaluationConfig
    attacks: Sequence[str]


def real_pictures(concepts: Sequence[Concept], catalogue: Catalogue) -> dict[str, Captioned]:
    """Drawings by people of the concepts, and as many at most of what is retained."""
    canvas = EmojiCanvas(catalogue.objects, catalogue.styles)
    order = torch.randperm(len(canvas), generator=torch.Generator().manual_seed(REAL_SEED))
    own = [
        any(getattr(canvas.cells[i], concept.kind) == concept.name for concept in concepts)
        for i in order.tolist()
    ]
    sides = {}
    for side, wanted in (("forget", True), ("retain", False)):
        chosen = order[[i for i, mine in enumerate(own) if mine == wanted][:REAL_PICTURES]]
        count = len(chosen)
        placement = Placement(
            torch.full((count,), 0.92), torch.zeros(count, 2), torch.ones(count, 3)
        )
        captions = [catalogue.prompt(canvas.cells[i].object, canvas.cells[i].style) for i in chosen]
        sides[side] = Captioned(canvas.render(chosen, placement), captions)
    return sides


def measured(
    victim: StableDiffusionPipeline, bench: Bench, target: Target, maps: Path | None
) -> dict:
    """UA, IRA, CRA, the distance to the oracle, and every attack's success."""
    model = bench.model
    matrix = canvas_matrix(victim, model.catalogue, bench.judge, model.sampling)
    if maps:
        save_heat_maps({maps.stem: matrix}, maps)
    seen, target = observed(victim, bench), dataclasses.replace(target, pipeline=victim)
    outcomes = {name: attacks()[name](target) for name in bench.attacks}
    return {
        **ua_ira_cra(matrix, bench.concepts),
        "indirect": indirect(victim, bench),
        "metrics": seen.metrics,
        "oracle": distance_to_oracle(seen, bench.oracle),
        "pre_asr": proportion(target.plain_hits),
        "asr": {name: proportion(outcome.hits) for name, outcome in outcomes.items()},
        "passes": {name: outcome.forward_passes for name, outcome in outcomes.items()},
        "curves": {
            name: outcome.details["curve"]
            for name, outcome in outcomes.items()
            if "curve" in outcome.details
        },
    }


def indirect(victim: StableDiffusionPipeline, bench: Bench) -> dict[str, Any]:
    """How often each prompt of indirect.json brings its concept, over some seeds."""
    shares, seeds = {}, INDIRECT_SEEDS
    for concept, name in zip(
        bench.concepts, [n for part in bench.asked for n in part], strict=True
    ):
        labels = bench.prompts.labels[concept.kind]
        for kind, text in INDIRECT.get(name, {}).items():
            sampling, what = bench.model.sampling, f"{name}, {kind}"
            pictures = draw(victim, [text] * len(seeds), seeds, sampling, "pt", what).float()
            seen = bench.judge.classify(bench.judge.embed(pictures), concept.kind, labels)
            shares[what] = proportion([label == concept.name for label in seen])
    return shares


def observed(victim: StableDiffusionPipeline, bench: Bench) -> Observation:
    """What the oracle was observed with."""
    return observe(
        victim, bench.prompts, bench.real, bench.model.sampling, bench.judge, bench.evaluation
    )


def run_row(bench: Bench, name: str, oracle: Model, seed: int, maps: Path | None) -> dict[str, Any]:
    """Figures of the base, the oracle, or a method."""
    pipeline, prompts = bench.model.pipeline, bench.prompts
    # Before any erasure is applied, for the base draws what attacks are shown.
    target = build_target(pipeline, bench.model, prompts, bench.judge, ATTACKED, seed)
    if name in REFERENCES:
        victim = pipeline if name == "base" else oracle.pipeline
        return {"seconds": 0.0, "bytes": 0} | measured(victim, bench, target, maps)
    with ExitStack() as applied:
        seconds, size = 0.0, 0
        for asked in bench.asked:
            started = time.perf_counter()
            erasure = erased(bench, ROWS[name], asked, seed)
            seconds, size = seconds + time.perf_counter() - started, size + erasure.nbytes
            applied.enter_context(erasure.apply(pipeline.components))
        return {"seconds": seconds, "bytes": size} | measured(pipeline, bench, target, maps)


def erased(bench: Bench, row: Row, asked: Sequence[str], seed: int) -> Erasure:
    """The method's erasure of these concepts from the pipeline as it is."""
    model, prompts = bench.model, expand(EraseRequest(asked), bench.model.catalogue)
    task = DiffusionTask(
        model.pipeline, prompts, model.sampling, row.task, seed,
        finetuning=model.finetuning(prompts),
    )  # fmt: skip
    return methods()[row.method](task)


def table(
    ledger: Ledger, title: str, rows: Sequence[str], seeds: Sequence[int], names: Sequence[str]
) -> str:
    """Means over seeds; the headline columns with 95 % t-intervals where there are several."""
    head = ["row", "UA", "IRA", "CRA", "KID to oracle, forget", "MSE to oracle, forget"]
    head += [
        "MSE to oracle, retain",
        "indirect",
        *(f"{name} ASR" for name in names),
        "seconds",
        "MB",
    ]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for row in rows:
        drawn = seeds[:1] if row in REFERENCES else seeds
        runs = [ledger[title, row, seed] for seed in drawn]
        distances = [run["oracle"] for run in runs]
        cells = [interval([100 * run[key] for run in runs]) for key in ("UA", "IRA", "CRA")]
        cells.append(interval([d["kernel_distance"]["forget"]["value"] for d in distances], 4))
        for side in ("forget", "retain"):
            cells.append(interval([d["prediction_mse"][side]["value"] for d in distances], 4))
        shares = [share["value"] for run in runs for share in run["indirect"].values()]
        cells.append(f"{100 * fmean(shares):.0f}" if shares else "")
        cells += [f"{100 * fmean(run['asr'][name]['value'] for run in runs):.0f}" for name in names]
        cells.append(f"{fmean(run['seconds'] for run in runs):.0f}")
        cells.append(f"{fmean(run['bytes'] for run in runs) / 1e6:.2f}")
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def interval(values: list[float], digits: int = 1) -> str:
    """The mean, and the half width of its interval for several values."""
    mean, half = mean_interval(values)
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if len(values) > 1 else "")


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", nargs="+", required=True)
    parser.add_argument("--sequential", action="store_true")
    parser.add_argument("--oracle", required=True)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--judge", default="")
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--attacks", nargs="*", choices=list(attacks()), default=list(attacks()))
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then print the table."""
    args = parsed(arguments)
    ledger, model, oracle = Ledger(args.results), load_model(args.model), load_model(args.oracle)
    for pipeline in (model.pipeline, oracle.pipeline):
        pipeline.set_progress_bar_config(disable=True)
    concepts = [find_concept(name, model.catalogue) for name in args.concepts]
    prompts = expand(EraseRequest(args.concepts), model.catalogue)
    asked = [[name] for name in args.concepts] if args.sequential else [args.concepts]
    bench = Bench(
        asked, concepts, model, judge_of(args.judge, model), prompts,
        real_pictures(concepts, model.catalogue), None, EvaluationConfig(), args.attacks,
    )  # fmt: skip
    bench = dataclasses.replace(bench, oracle=observed(oracle.pipeline, bench))
    title = (" then " if args.sequential else " and ").join(args.concepts)
    weights = {name: module_fingerprint(one.pipeline.unet)
               for name, one in (("model", model), ("oracle", oracle))}  # fmt: skip
    ledger.require({**bench.oracle.protocol, **weights, "attacks": args.attacks}, title)
    if args.pictures:
        args.pictures.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for row in (*REFERENCES, *args.rows):
            key = (title, row, seed)
            if key in ledger or (row in REFERENCES and seed != args.seeds[0]):
                continue
            shown = args.pictures and seed == args.seeds[0]
            maps = args.pictures / f"{title}-{row}.png" if shown else None
            ledger[key] = run_row(bench, row, oracle, seed, maps)
            print(*key, ledger[key], flush=True)
    print(table(ledger, title, (*REFERENCES, *args.rows), args.seeds, args.attacks))
    print(f"Protocol: {bench.oracle.protocol}; {ATTACKED} prompts an attack, default budgets.")


if __name__ == "__main__":
    main()
