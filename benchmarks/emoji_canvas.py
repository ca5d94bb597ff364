"""EmojiCanvas bench: methods beside the base and a model retrained without the concepts.

Run: `python benchmarks/emoji_canvas.py --concepts ghost --oracle FOLDER`, where FOLDER is a
pipeline that `scripts/train_oracles.py` trained. Several concepts are erased at once, or in turn
with --sequential. For every row and seed: UA, IRA and CRA over objects in styles (all cells of the
concepts, of the others one in --every), the distance to the oracle, and how often prompts that
never use the trained words (indirect.json) bring a concept; for --attack-seeds the success of every
attack, and what shows at half the erasure's strength. Trained and drawn in bfloat16 autocast, all
else in float32. Goes on where --results ends, which is of one protocol for the concepts, then
prints the table; heat-maps of the first seed go to --pictures. A method's seconds are its own:
all methods of a seed share the pictures of its sets. Processes may share one file for other rows.
"""

import argparse
import copy
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from canvas_table import REFERENCES, table
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from ledger import Ledger

from erase.attack_runner import build_target
from erase.attacks import attacks
from erase.attacks.base import Target
from erase.bundled.canvas import EmojiCanvas, Placement
from erase.catalogue import Catalogue, Concept
from erase.core.fingerprint import module_fingerprint
from erase.erasure import Erasure
from erase.evaluate.clip import ClipJudge, proportion
from erase.evaluate.generation import EvaluationConfig
from erase.evaluate.matrix import canvas_matrix, save_heat_maps, ua_ira_cra
from erase.evaluate.oracle import Captioned, Observation, distance_to_oracle, observe
from erase.methods import methods
from erase.models import Model, load_model
from erase.request import EraseRequest, PromptSet, expand, find_concept
from erase.runner import judge_of
from erase.tasks.diffusion import DiffusionTask
from erase.tasks.sampling import draw

OTHER_WORDS = json.loads((Path(__file__).parent / "indirect.json").read_text())
OTHER_WORDS_SEEDS = range(9_500_000, 9_500_008)
RESULTS = Path(__file__).parent / "results" / "emoji_canvas.json"
REAL_SEED, REAL_PICTURES, ATTACKED, LEAK = 0, 64, 16, 0.5

# A method, and how many adversary steps its task takes.
ROWS = {name: (name, 0) for name in (
    "salun", "salun_soft", "salun_lora", "projection", "uce", "rece", "esd", "concept_ablation",
    "neggrad_plus", "gradient_ascent",
)} | {"salun, robust": ("salun", 4)}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Bench:
    """What every row is measured with."""

    asked: Sequence[Sequence[str]]  # what is erased at once, then what next
    concepts: Sequence[Concept]
    model: Model
    judge: ClipJudge
    prompts: PromptSet
    real: dict[str, Captioned]
    oracle: Observation | None
    attacks: Sequence[str]
    attack_seeds: Sequence[int]
    every: int


def half() -> torch.autocast:
    """bfloat16, without remembered casts: the weights change while it is in force."""
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False)


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


def measured(victim: StableDiffusionPipeline, bench: Bench, maps: Path | None) -> dict[str, Any]:
    """UA, IRA, CRA, what other words bring, and the distance to the oracle."""
    model = bench.model
    with half():
        matrix = canvas_matrix(
            victim, model.catalogue, bench.judge, model.sampling, bench.every, bench.concepts
        )
        seen, words = observed(victim, bench), other_words(victim, bench)
    if maps:
        save_heat_maps({maps.stem: matrix}, maps)
    return {
        **ua_ira_cra(matrix, bench.concepts),
        "other_words": words,
        "metrics": seen.metrics,
        "oracle": distance_to_oracle(seen, bench.oracle),
    }


def attacked(victim: StableDiffusionPipeline, bench: Bench, seed: int) -> dict[str, Any]:
    """Every attack's success, its budget, and how soon relearning brings the concepts back."""
    target = dataclasses.replace(target_of(bench, seed), pipeline=victim)
    with half():
        outcomes = {name: attacks()[name](target) for name in bench.attacks}
        before = proportion(target.plain_hits)
    return {
        "pre_asr": before,
        "asr": {name: proportion(outcome.hits) for name, outcome in outcomes.items()},
        "passes": {name: outcome.forward_passes for name, outcome in outcomes.items()},
        "details": {name: outcome.details for name, outcome in outcomes.items() if outcome.details},
    }


@cache
def target_of(bench: Bench, seed: int) -> Target:
    """What attacks are shown, drawn by the base: ask before any erasure is applied."""
    model = bench.model
    with half():
        return build_target(model.pipeline, model, bench.prompts, bench.judge, ATTACKED, seed)


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
        shares[what] = proportion([label == concept.name for label in found])
    return shares


def observed(victim: StableDiffusionPipeline, bench: Bench) -> Observation:
    """What the oracle was observed with."""
    return observe(
        victim, bench.prompts, bench.real, bench.model.sampling, bench.judge, EvaluationConfig()
    )


def run_row(bench: Bench, name: str, oracle: Model, seed: int, maps: Path | None) -> dict[str, Any]:
    """Figures of the base, the oracle, or a method."""
    pipeline, started = bench.model.pipeline, time.perf_counter()
    victim = oracle.pipeline if name == "oracle" else pipeline
    attack = bool(bench.attacks) and seed in bench.attack_seeds
    if attack:
        target_of(bench, seed)  # while the base is as it was
    erasures, seconds = ([], 0.0) if name in REFERENCES else erased(bench, *ROWS[name], seed)
    row = {"seconds": seconds, "bytes": sum(erasure.nbytes for erasure in erasures)}
    with in_force(erasures, pipeline):
        row |= measured(victim, bench, maps)
        row |= attacked(victim, bench, seed) if attack else {}
    if attack and erasures:
        with in_force(erasures, pipeline, LEAK), half():
            target = dataclasses.replace(target_of(bench, seed), pipeline=pipeline)
            row["leak"] = proportion(target.plain_hits)
    return row | {"took": time.perf_counter() - started}


@contextmanager
def in_force(
    erasures: Sequence[Erasure], pipeline: StableDiffusionPipeline, scale: float = 1.0
) -> Iterator[None]:
    """While it lasts, the erasures are applied, one after the other."""
    with ExitStack() as applied:
        for erasure in erasures:
            applied.enter_context(erasure.apply(pipeline.components, scale))
        yield


def erased(bench: Bench, method: str, adversary: int, seed: int) -> tuple[list[Erasure], float]:
    """The method's erasure of every part of what is asked, and the seconds of the method alone."""
    erasures, seconds = [], 0.0
    for asked in bench.asked:
        with in_force(erasures, bench.model.pipeline):
            task = copy.copy(
                (first_task if not erasures else drawn_task)(bench, tuple(asked), seed)
            )
            task.config = dataclasses.replace(task.config, adversary_steps=adversary)
            config = methods()[method].config()
            if hasattr(config, "training"):
                training = dataclasses.replace(config.training, mixed_precision="bf16")
                config = dataclasses.replace(config, training=training)
            started = time.perf_counter()
            erasure = methods()[method](task, config)
            seconds += time.perf_counter() - started
        erasures.append(erasure)
    return erasures, seconds


def drawn_task(bench: Bench, asked: tuple[str, ...], seed: int) -> DiffusionTask:
    """Erasing these concepts from the pipeline as it is, with all pictures drawn."""
    model, prompts = bench.model, expand(EraseRequest(asked), bench.model.catalogue)
    task = DiffusionTask(
        model.pipeline, prompts, model.sampling, seed=seed, finetuning=model.finetuning(prompts)
    )
    with half():
        task.for_redirection().prepare()
    return task


first_task = cache(drawn_task)  # of the base, so that all methods of a seed can share it


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", nargs="+", required=True)
    parser.add_argument("--sequential", action="store_true")
    parser.add_argument("--oracle", required=True)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--judge", default="")
    rows = [*REFERENCES, *ROWS]
    parser.add_argument("--rows", nargs="*", choices=rows, default=rows)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--every", type=int, default=8)
    parser.add_argument("--attacks", nargs="*", choices=list(attacks()), default=list(attacks()))
    parser.add_argument("--attack-seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def opened(name: str) -> Model:
    """A model that draws fast in bfloat16, where CPUs are slow at PyTorch's own attention."""
    model = load_model(name)
    model.pipeline.set_progress_bar_config(disable=True)
    model.pipeline.unet.set_attn_processor(AttnProcessor())
    return model


def open_bench(args: argparse.Namespace, oracle: Model) -> Bench:
    """Everything that the rows share."""
    model = opened(args.model)
    concepts = [find_concept(name, model.catalogue) for name in args.concepts]
    bench = Bench(
        [[name] for name in args.concepts] if args.sequential else [args.concepts],
        concepts, model, judge_of(args.judge, model),
        expand(EraseRequest(args.concepts), model.catalogue),
        real_pictures(concepts, model.catalogue), None, args.attacks, args.attack_seeds, args.every,
    )  # fmt: skip
    with half():
        return dataclasses.replace(bench, oracle=observed(oracle.pipeline, bench))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then print the table."""
    args = parsed(arguments)
    ledger, oracle = Ledger(args.results), opened(args.oracle)
    bench = open_bench(args, oracle)
    title = (" then " if args.sequential else " and ").join(args.concepts)
    protocol = bench.oracle.protocol | {
        "model": module_fingerprint(bench.model.pipeline.unet),
        "oracle": module_fingerprint(oracle.pipeline.unet),
        "attacks": {name: dataclasses.asdict(attacks()[name].config()) for name in args.attacks},
        "attack_seeds": args.attack_seeds,
        "every": args.every,
    }
    ledger.require(protocol, title)
    if args.pictures:
        args.pictures.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for row in args.rows:
            key = (title, row, seed)
            if key in ledger or (row in REFERENCES and seed != args.seeds[0]):
                continue
            shown = args.pictures and seed == args.seeds[0]
            maps = args.pictures / f"{title}-{row}.png" if shown else None
            ledger[key] = run_row(bench, row, oracle, seed, maps)
            print(*key, ledger[key], flush=True)
    print(table(ledger, title, args.rows, args.seeds, args.attacks))
    print(f"Protocol: {protocol}; {ATTACKED} prompts an attack, default budgets.")


if __name__ == "__main__":
    main()
