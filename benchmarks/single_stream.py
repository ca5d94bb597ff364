"""What training shared blocks does to a model where text and picture share weights.

Run: `python benchmarks/single_stream.py --model FOLDER --concepts ghost`, where FOLDER is what
`scripts/train_emoji.py single-stream` trained. Each method edits where text alone passes, as by
default, or the shared blocks too; UA, IRA and CRA by the bundled judge of pictures of --steps
sampling steps. Goes on where --results ends, then prints the table; with --pictures a grid of every
row, the concept on the left, what is retained on the right.
"""

import argparse
import copy
import dataclasses
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ledger import Ledger

from erase.core.fingerprint import module_fingerprint
from erase.erasure.erasure import Erasure
from erase.evaluate.pictures.generation import (
    EvaluationConfig,
    EvaluationPictures,
    draw_evaluation,
    judge_drawn,
)
from erase.evaluate.pictures.judges import judge_line, judge_of
from erase.evaluate.reports import ACCURACIES
from erase.methods import methods
from erase.methods.esd import ESDConfig
from erase.methods.projection import ProjectionConfig
from erase.methods.salun import SalUnConfig
from erase.models.opening import Model, load_model
from erase.prompts.request import EraseRequest, PromptSet, expand
from erase.support.pictures import save_grid
from erase.tasks.diffusion.config import DiffusionTaskConfig
from erase.tasks.diffusion.task import DiffusionTask

RESULTS = Path(__file__).parent / "results" / "single_stream.json"
SHARED = "transformer.layers.*"
SHOWN = 6  # pictures of either side
NAMES = ("UA", "IRA", "CRA")


@dataclass(frozen=True)
class Row:
    """A method, its config, and whether the shared blocks may change too."""

    method: str
    config: Any
    shared: bool = True


ROWS = {
    "projection": Row("projection", ProjectionConfig(), False),
    "projection, shared": Row("projection", ProjectionConfig(targets=("transformer",))),
    "salun": Row("salun", SalUnConfig(), False),
    "salun, shared": Row("salun", SalUnConfig()),
    "salun, shared, no mask": Row("salun", SalUnConfig(mask="none")),
    "salun, shared, no retain loss": Row("salun", SalUnConfig(retain_weight=0.0)),
    "esd": Row("esd", ESDConfig(), False),
    "esd, shared": Row("esd", ESDConfig("all")),
    "esd, shared, retain loss": Row("esd", ESDConfig("all", retain_weight=1.0)),
}


def task_of(
    model: Model, prompts: PromptSet, config: DiffusionTaskConfig, seed: int
) -> DiffusionTask:
    """Forgetting these prompts, with all pictures drawn that any row learns from."""
    known = model.pipeline, prompts, model.sampling, config, seed
    task = DiffusionTask(*known, finetuning=model.finetuning(prompts))
    task.with_redirection_pictures().prepare()
    return task


def erased(first: DiffusionTask, row: Row) -> tuple[Erasure, dict[str, Any]]:
    """The row's erasure, with its seconds of CPU time, bytes, and how many weights might change."""
    task = copy.copy(first)
    if row.shared:
        include = (*task.family.reads_text, SHARED)
        task.config = dataclasses.replace(task.config, include=include)
    started = time.process_time()
    erasure = methods()[row.method](task, row.config)
    weights = sum(weight.numel() for weight in task.parameters().values())
    seconds = time.process_time() - started
    return erasure, {"seconds": seconds, "bytes": erasure.nbytes, "weights": weights}


def record(args: argparse.Namespace, concept: str, ledger: Ledger, model: Model) -> None:
    """Measure the rows of one concept that are missing."""
    prompts = expand(EraseRequest([concept]), model.catalogue)
    judge, pipeline = judge_of(args.judge, model.catalogue), model.pipeline
    sampling = dataclasses.replace(model.sampling, steps=args.steps)
    config = EvaluationConfig(args.forget_pictures, args.retain_pictures)
    learning = DiffusionTaskConfig(generation_steps=args.steps, batch_size=args.batch_size)
    ledger.require(
        {
            "model": module_fingerprint(pipeline.transformer),
            "judge": judge_line(judge),
            "sampling": dataclasses.asdict(sampling),
            "evaluation": dataclasses.asdict(config),
            "task": dataclasses.asdict(learning),
            "finetuning": dataclasses.asdict(model.finetuning(prompts)),
        },
        concept,
    )
    for seed in args.seeds:
        names = [*([] if seed != args.seeds[0] else ["base"]), *args.rows]
        missing = [name for name in names if (concept, name, seed) not in ledger]
        first = task_of(model, prompts, learning, seed) if missing else None
        for name in missing:
            erasure, figures = erased(first, ROWS[name]) if name != "base" else (None, {})
            with erasure.apply(pipeline.components) if erasure else nullcontext():
                drawn = draw_evaluation(pipeline, prompts, sampling, config, name)
            metrics = judge_drawn(drawn, judge, prompts.labels).to_json()
            ledger[concept, name, seed] = figures | {key: metrics[key] for key in ACCURACIES}
            print(concept, name, seed, ledger[concept, name, seed], flush=True)
            if args.pictures:
                args.pictures.mkdir(parents=True, exist_ok=True)
                path = args.pictures / f"{concept}-{name}-{seed}.png"
                save_grid(shown(drawn), path, 2 * SHOWN)


def shown(drawn: EvaluationPictures) -> torch.Tensor:
    """The first pictures of either side."""
    at = drawn.forget_count
    return torch.cat([drawn.pictures[:SHOWN], drawn.pictures[at : at + SHOWN]])


def table(ledger: Ledger, concepts: Sequence[str], seeds: Sequence[int]) -> str:
    """One line a row and seed: shares in per cent with their 95 % Wilson intervals."""
    head = ["concept", "row", "seed", *NAMES, "may change", "seconds", "MB"]
    lines = [head, ["---"] * len(head)]
    for key in ((c, name, seed) for c in concepts for name in ("base", *ROWS) for seed in seeds):
        if key not in ledger:
            continue
        figures = ledger[key]
        cells = [_share(figures[name], name == "forget_accuracy") for name in ACCURACIES]
        cost = ["", "", ""]
        if "seconds" in figures:
            cost = [f"{figures['weights']:,}", f"{figures['seconds']:.0f}",
                    f"{figures['bytes'] / 1e6:.2f}"]  # fmt: skip
        lines.append([*map(str, key), *cells, *cost])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _share(figure: dict[str, Any], turned: bool) -> str:
    """A share and its interval; one less it where the figure is turned."""
    value, (low, high) = figure["value"], figure["interval"]
    if turned:
        value, low, high = 1 - value, 1 - high, 1 - low
    return f"{100 * value:.1f} [{100 * low:.0f}, {100 * high:.0f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--judge", default="")
    parser.add_argument("--concepts", nargs="+", required=True)
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--forget-pictures", type=int, default=32)
    parser.add_argument("--retain-pictures", type=int, default=96)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    ledger, model = Ledger(args.results), load_model(args.model)
    for concept in args.concepts:
        record(args, concept, ledger, model)
    print(table(ledger, args.concepts, args.seeds))


if __name__ == "__main__":
    main()
