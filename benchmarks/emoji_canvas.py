"""EmojiCanvas bench: methods beside the base and a model retrained without the concepts.

Run: `python benchmarks/emoji_canvas.py --concepts ghost --oracle FOLDER`, where FOLDER is a
pipeline that `scripts/train_oracles.py` trained. Several concepts are erased at once, or in turn
with --sequential. For every row and seed: UA, IRA and CRA over objects in styles (all cells of the
concepts, of the others one in --every), the distance to the oracle, and how often prompts that
never use the trained words (indirect.json) bring a concept; for --attack-seeds the success of every
attack, within BUDGETS, and what shows at half the erasure's strength. All pictures are drawn in
--steps sampling steps. The judge is always in float32, all else too unless --mixed-precision is
bf16, which is for CPUs that know AVX512-BF16 and much slower on others. Goes on where --results
ends, which is of one protocol for the concepts, then prints the table; heat-maps of the first seed
go to --pictures. With --jobs N, N processes share rows and cores. A method's seconds are its own:
the methods of one job and seed share the pictures of its sets.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from canvas_bench import (
    ATTACKED,
    TUNED,
    Bench,
    erased,
    in_force,
    opened,
    real_pictures,
    target_of,
)
from canvas_table import REFERENCES, table
from diffusers import StableDiffusionPipeline
from ledger import Ledger
from observation import Observation, distance_to_oracle, observe

from erase.attacks import attacks
from erase.attacks.latent_inversion import LatentInversionConfig
from erase.attacks.prefix import PrefixConfig
from erase.core.fingerprint import module_fingerprint
from erase.erasure.erasure import Erasure
from erase.evaluate.pictures.generation import EvaluationConfig
from erase.evaluate.pictures.judges import judge_of
from erase.evaluate.pictures.matrix import canvas_matrix, save_heat_maps, ua_ira_cra
from erase.evaluate.reports import wilson_share
from erase.methods import methods
from erase.models.opening import Model
from erase.prompts.request import EraseRequest, expand, find_concept
from erase.tasks.diffusion.config import DiffusionTaskConfig
from erase.tasks.diffusion.sampling import draw

OTHER_WORDS = json.loads((Path(__file__).parent / "indirect.json").read_text(encoding="utf-8"))
OTHER_WORDS_SEEDS = range(9_500_000, 9_500_004)
RESULTS = Path(__file__).parent / "results" / "emoji_canvas.json"
EVALUATION, LEAK = EvaluationConfig(forget_pictures=32, retain_pictures=32), 0.5
PUBLISHED = "published"
Key = tuple[str, str, int]
WORKER: list[Callable[[Key], None]] = []

# The longest of them first, so that jobs end together.
USUAL_METHODS = (
    "salun", "esd", "neggrad_plus", "concept_ablation", "gradient_ascent", "uce", "rece",
    "projection",
)  # fmt: skip
METHODS = (*USUAL_METHODS, "salun_soft", "salun_lora", "speed", "oce", "balance", "scrub")
# A method, how many adversary steps its task takes, and how its settings were chosen.
ROWS = {name: (name, 0, "ours") for name in METHODS}
ROWS |= {
    f"{name}, {PUBLISHED}": (name, 0, PUBLISHED) for name in METHODS if methods()[name].published
}
ROWS |= {f"{name}, {TUNED}": (name, 0, TUNED) for name in METHODS}
ROWS["salun, robust"] = ("salun", 4, "ours")
USUAL_ATTACKS = (
    "concept_inversion", "prefix", "ring_a_bell", "recall", "relearning", "latent_inversion",
)  # fmt: skip
# Where an attack's default asks for more than a whole bench has time for.
BUDGETS = {
    "prefix": PrefixConfig(batch_size=4),
    "latent_inversion": LatentInversionConfig(steps=10),
}


def measured(
    victim: StableDiffusionPipeline, bench: Bench, seen: Observation | None, maps: Path | None
) -> dict[str, Any]:
    """UA, IRA, CRA, what other words bring, and the distance to the oracle, if there is one.

    `seen` is the victim's observation, where there is one.
    """
    model = bench.model
    with bench.precision():
        matrix = canvas_matrix(
            victim, model.catalogue, bench.judge, model.sampling, bench.every, bench.concepts
        )
        seen, words = seen or observed(victim, bench), other_words(victim, bench)
    if maps:
        save_heat_maps({maps.stem: matrix}, maps)
    figures = {
        **ua_ira_cra(matrix, bench.concepts), "other_words": words, "metrics": seen.metrics
    }  # fmt: skip
    distances = {"oracle": distance_to_oracle(seen, bench.oracle)} if bench.oracle else {}
    return figures | distances


def attacked(victim: StableDiffusionPipeline, bench: Bench, seed: int) -> dict[str, Any]:
    """Every attack's success, its budget, and how soon relearning brings the concepts back."""
    target = target_of(bench, seed).with_pipeline(victim)
    with bench.precision():
        outcomes = {name: attacks()[name](target, BUDGETS.get(name)) for name in bench.attacks}
        before = wilson_share(target.plain_hits).to_json()
    return {
        "pre_asr": before,
        "asr": {name: wilson_share(one.hits).to_json() for name, one in outcomes.items()},
        "passes": {name: outcome.forward_passes for name, outcome in outcomes.items()},
        "details": {name: outcome.details for name, outcome in outcomes.items() if outcome.details},
    }


def other_words(victim: StableDiffusionPipeline, bench: Bench) -> dict[str, Any]:
    """How often each prompt of indirect.json brings its concept, over some seeds."""
    asked = [name for part in bench.asked for name in part]
    prompts = [
        (f"{name}, {kind}", concept, text)
        for concept, name in zip(bench.concepts, asked, strict=True)
        for kind, text in OTHER_WORDS.get(name, {}).items()
    ]
    each = len(OTHER_WORDS_SEEDS)
    texts = [text for _, _, text in prompts for _ in OTHER_WORDS_SEEDS]
    seeds = [*OTHER_WORDS_SEEDS] * len(prompts)
    pictures = draw(victim, texts, seeds, bench.model.sampling, "pt", "other words").float()
    shares = {}
    for i, (what, concept, _) in enumerate(prompts):
        seen = bench.judge.embed(pictures[i * each : (i + 1) * each])
        found = bench.judge.classify(seen, concept.kind, bench.prompts.labels[concept.kind])
        shares[what] = wilson_share([label == concept.name for label in found]).to_json()
    return shares


def observed(victim: StableDiffusionPipeline, bench: Bench) -> Observation:
    """What the oracle was observed with."""
    return observe(victim, bench.prompts, bench.real, bench.model.sampling, bench.judge, EVALUATION)


def run_row(bench: Bench, name: str, oracle: Model, seed: int, maps: Path | None) -> dict[str, Any]:
    """Figures of the base, the oracle, or a method."""
    pipeline, started = bench.model.pipeline, time.perf_counter()
    victim, seen = (oracle.pipeline, bench.oracle) if name == "oracle" else (pipeline, None)
    attack = bool(bench.attacks) and seed in bench.attack_seeds
    if attack:
        target_of(bench, seed)  # while the base is as it was
    erasures, seconds = ([], 0.0) if name in REFERENCES else erased_by(bench, name, seed)
    row = {"seconds": seconds, "bytes": sum(erasure.nbytes for erasure in erasures)}
    with in_force(erasures, pipeline):
        row |= measured(victim, bench, seen, maps)
        row |= attacked(victim, bench, seed) if attack else {}
    if attack and erasures:
        with in_force(erasures, pipeline, LEAK), bench.precision():
            target = target_of(bench, seed).with_pipeline(pipeline)
            row["leak"] = wilson_share(target.plain_hits).to_json()
    return row | {"took": time.perf_counter() - started}


def erased_by(bench: Bench, row: str, seed: int) -> tuple[list[Erasure], float]:
    """The row's erasures, and the seconds of its method."""
    method, adversary, preset = ROWS[row]
    return erased(bench, method, adversary, seed, preset)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", nargs="+", required=True)
    parser.add_argument("--sequential", action="store_true")
    parser.add_argument("--oracle", required=True)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--judge", default="")
    parser.add_argument(
        "--rows", nargs="*", choices=[*REFERENCES, *ROWS], default=[*USUAL_METHODS, *REFERENCES]
    )
    parser.add_argument("--attacks", nargs="*", choices=list(attacks()), default=USUAL_ATTACKS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--attack-seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--every", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--mixed-precision", choices=["no", "bf16"], default="no")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def open_bench(
    args: argparse.Namespace, observation: Observation | None = None
) -> tuple[Bench, Model | None]:
    """Everything that the rows share, and the oracle, which is observed unless it has been."""
    model, oracle = (
        opened(name, args.mixed_precision) if name else None for name in (args.model, args.oracle)
    )
    sampling = dataclasses.replace(model.sampling, steps=args.steps)
    catalogue = dataclasses.replace(model.catalogue, sampling=sampling)
    model = dataclasses.replace(model, catalogue=catalogue)
    concepts = [find_concept(name, model.catalogue) for name in args.concepts]
    bench = Bench(
        [[name] for name in args.concepts] if args.sequential else [args.concepts],
        concepts, model, judge_of(args.judge, model.catalogue),
        expand(EraseRequest(args.concepts), model.catalogue),
        real_pictures(concepts, model.catalogue), observation, args.attacks, args.attack_seeds,
        args.every, args.mixed_precision,
    )  # fmt: skip
    if oracle and not observation:
        with bench.precision():
            bench = dataclasses.replace(bench, oracle=observed(oracle.pipeline, bench))
    return bench, oracle


def protocol_of(bench: Bench, oracle: Model | None) -> dict[str, Any]:
    """What the figures depend on."""
    return (bench.oracle.protocol if bench.oracle else {}) | {
        "model": module_fingerprint(bench.model.pipeline.unet),
        "oracle": module_fingerprint(oracle.pipeline.unet) if oracle else None,
        "attacks": {
            name: dataclasses.asdict(BUDGETS.get(name) or attacks()[name].config())
            for name in bench.attacks
        },
        "attack_seeds": bench.attack_seeds,
        "every": bench.every,
        "other_words_seeds": len(OTHER_WORDS_SEEDS),
        "attacked_prompts": ATTACKED,
        "learning_steps": DiffusionTaskConfig().sampling(bench.model.sampling).steps,
        "mixed_precision": bench.mixed_precision,
    }


def record(args: argparse.Namespace, bench: Bench, oracle: Model, key: Key) -> None:
    """Run one row and note its figures."""
    title, row, seed = key
    shown = args.pictures and seed == args.seeds[0]
    maps = args.pictures / f"{title}-{row}.png" if shown else None
    Ledger(args.results)[key] = figures = run_row(bench, row, oracle, seed, maps)
    print(*key, figures, flush=True)


def start_worker(args: argparse.Namespace, observation: Observation) -> None:
    """Open the bench in a process that shares the machine with others."""
    torch.set_num_threads(max(1, torch.get_num_threads() // args.jobs))
    WORKER.append(partial(record, args, *open_bench(args, observation)))


def work(key: Key) -> None:
    """Run one row in this process."""
    WORKER[0](key)


def record_side_by_side(
    args: argparse.Namespace, observation: Observation, keys: Sequence[Key]
) -> None:
    """Share the rows among processes, the next one to whichever is free."""
    known = (args, observation)
    with ProcessPoolExecutor(args.jobs, get_context("forkserver"), start_worker, known) as pool:
        list(pool.map(work, keys))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then print the table."""
    args, started = parsed(arguments), time.perf_counter()
    bench, oracle = open_bench(args)
    title = (" then " if args.sequential else " and ").join(args.concepts)
    protocol, ledger = protocol_of(bench, oracle), Ledger(args.results)
    ledger.require(protocol, title)
    if args.pictures:
        args.pictures.mkdir(parents=True, exist_ok=True)
    keys = [
        (title, row, seed)
        for seed in args.seeds
        for row in args.rows
        if row not in REFERENCES or seed == args.seeds[0]
    ]
    missing = [key for key in keys if key not in ledger]
    if args.jobs == 1:
        for key in missing:
            record(args, bench, oracle, key)
    else:
        record_side_by_side(args, bench.oracle, missing)
    print(table(Ledger(args.results), title, args.rows, args.seeds, args.attacks))
    print(f"Protocol: {protocol}")
    print(f"{len(missing)} rows in {time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    main()
