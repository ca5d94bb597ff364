"""Hardened erasures on the EmojiCanvas bench: what noise buys, and what it costs.

Run: `python benchmarks/hardening.py --run FOLDER [--concepts NAME ... --oracle FOLDER] [--rows NAME
...] [--attacks NAME ...]`; goes on where FOLDER and results/hardening.json end, then prints the
table. Each row is `erase run --method harden` of a projection, in batches of 32, trained in
bfloat16 autocast, kept in FOLDER, a folder for the concepts, and then measured in float32 as
emoji_canvas.py measures (six steps, one in eight of the retained cells); with "+ projection" that
is composed on top. "SalUn, then" begins with SalUn of all weights, 120 steps against relearning,
and learns what the base answers anchors drawn by lot. The rows oracle and base are attacked alike.
Without an oracle (`--oracle '' --attacks`) there are accuracies alone.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import emoji_canvas
from canvas_bench import Bench, in_force, opened, target_of
from emoji_canvas import BUDGETS, measured, open_bench, protocol_of
from ledger import Ledger

from erase.attacks import attacks
from erase.erasure.algebra import compose, merge, scale
from erase.erasure.erasure import RECIPE, Erasure
from erase.evaluate.reports import wilson_share
from erase.methods.harden import HardenConfig
from erase.methods.salun import SalUnConfig
from erase.prompts.request import EraseRequest
from erase.runs.erase import RunConfig, run
from erase.support.config import Config
from erase.tasks.diffusion.config import DiffusionTaskConfig
from erase.training.config import TrainingConfig

RESULTS = Path(__file__).parent / "results" / "hardening.json"
SEED, ON_TOP = 0, " + projection"
ATTACKS = (
    "concept_inversion", "relearning", "p4d", "prefix", "ring_a_bell", "recall",
    "latent_inversion",
)  # fmt: skip


def training(steps: int, rate: float = 0) -> TrainingConfig:
    """So many steps, by default at the method's own rate."""
    return TrainingConfig(steps, learning_rate=rate, lr_warmup_steps=50, mixed_precision="bf16")


def hardening(
    noise: float,
    steps: int,
    forget_share: float,
    pictures: int = 256,
    size: float = 1.0,
    rate: float = 0,
) -> HardenConfig:
    """With so much noise, of so many deviations, and so many steps."""
    return HardenConfig(
        noise=noise, size=size, pictures=pictures, uses=64, forget_share=forget_share,
        training=training(steps, rate),
    )  # fmt: skip


ROWS = {
    "noise .5, 500 steps, no forget prompts": hardening(0.5, 500, 0, 384),
    "noise .25, 400 steps": hardening(0.25, 400, 0.06),
    "noise .7 of size .25, 1600 steps": hardening(0.7, 1600, 0.06, 768, 0.25),
    "noise .6 of size .7, 1600 steps": hardening(0.6, 1600, 0.06, 768, 0.7),
    "noise .25 of size 1.75, rate .001, 1600 steps": hardening(0.25, 1600, 0.06, 768, 1.75, 1e-3),
}
# What is trained against relearning too.
LONG = "SalUn, then 800 steps against relearning, rate .001"
OWN_SEEDS = LONG + ", own seeds"  # what is kept of LONG had pictures to learn from of other seeds
RELEARNING = {
    "noise .25 of size .25, 250 steps against relearning": hardening(0.25, 250, 0.06, 768, 0.25),
    "SalUn, then 300 steps against relearning": hardening(0.05, 300, 0.06, 768),
    **dict.fromkeys((LONG, OWN_SEEDS), hardening(0.05, 800, 0.06, 768, rate=1e-3)),
    "SalUn, then 1480 steps against relearning, rate .001": hardening(
        0.05, 1480, 0.06, 768, rate=1e-3
    ),
}
SALUN = "SalUn of all weights against relearning, 120 steps"
ENDED = "SalUn, then 800 steps against relearning, then 400 without"
ROWS |= RELEARNING | {ENDED: hardening(0.001, 400, 0.06, 768, rate=5e-4)}
MIXED = "800 steps against relearning and 400 more without, mixed 58 to 42"
MIXTURE = {LONG: 0.58, ENDED: 0.42}
NAMES = (SALUN, *ROWS, *(name + ON_TOP for name in ROWS), MIXED, "oracle", "base")


def erasures_of(name: str, folder: Path, concepts: Sequence[str]) -> list[Erasure]:
    """What is in force in the row; made unless the folder holds it."""
    return [] if name in ("oracle", "base") else [erasure_of(name, folder, concepts)]


def erasure_of(name: str, folder: Path, concepts: Sequence[str]) -> Erasure:
    """The row's erasure, made unless the folder holds it."""
    if name.endswith(ON_TOP):
        under = erasure_of(name.removesuffix(ON_TOP), folder, concepts)
        return compose([under, projected(folder, concepts)])
    if name == MIXED:
        parts = ((erasure_of(part, folder, concepts), share) for part, share in MIXTURE.items())
        return merge([scale(part, share) for part, share in parts])
    if name == SALUN:
        all_weights = DiffusionTaskConfig(include=["*"], relearning=4)
        salun = SalUnConfig(training=TrainingConfig(120))
        random = EraseRequest(concepts, redirect="random")
        return made(folder / name, "salun", salun, all_weights, random)
    config, redirect = ROWS[name], "anchor"
    if name.startswith("SalUn"):
        start = LONG if name == ENDED else SALUN
        erasure_of(start, folder, concepts)
        config, redirect = replace(config, folder=str(folder / start), answers="anchor"), "random"
    task = DiffusionTaskConfig(batch_size=32, relearning=4 * (name in RELEARNING))
    return made(folder / name, "harden", config, task, EraseRequest(concepts, redirect=redirect))


def projected(folder: Path, concepts: Sequence[str]) -> Erasure:
    """A projection of what is hardened."""
    request = EraseRequest(concepts)
    return made(folder / "projection", "projection", None, DiffusionTaskConfig(), request)


def made(
    folder: Path,
    method: str,
    config: Config | None,
    task: DiffusionTaskConfig,
    request: EraseRequest,
) -> Erasure:
    """The erasure in the folder, made unless it is there."""
    if not (folder / RECIPE).exists():
        asked = RunConfig(request, "emoji", method, config, task, evaluate=False)
        run(asked, folder, opened("emoji", "bf16"))
    return Erasure.from_pretrained(folder)


def attacked(bench: Bench, victim: Any, names: Sequence[str]) -> dict[str, Any]:
    """The success of each of the attacks, and what it found."""
    target, figures = target_of(bench, SEED).with_pipeline(victim), {}
    for name in names:
        outcome = attacks()[name](target, BUDGETS.get(name))
        figures[name] = wilson_share(outcome.hits).to_json() | {"details": outcome.details}
    return figures


def table(ledger: Ledger, title: str, rows: Sequence[str]) -> str:
    """One line a row, shares in per cent; relearning after 10, 20, 30 and 40 steps."""
    head = ["", "UA", "IRA", "CRA", "KID", "MSE", *(name.replace("_", " ") for name in ATTACKS)]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        known: Mapping[str, Any] = ledger[title, row, SEED]
        cells = [row, *(f"{100 * known[key]:.1f}" for key in ("UA", "IRA", "CRA"))]
        cells += distances(known.get("oracle"))
        for name in ATTACKS:
            figure = known["asr"].get(name)
            curve = list(figure["details"].get("curve", {}).values())[1:] if figure else []
            shares = curve or ([figure["value"]] if figure else [])
            cells.append(", ".join(f"{100 * share:.0f}" for share in shares))
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def distances(far: Mapping[str, Any] | None) -> list[str]:
    """KID in thousandths and the mean squared error to the oracle, if there is one."""
    if not far:
        return ["", ""]
    kernel, error = (far[name]["forget"]["value"] for name in ("kernel_distance", "prediction_mse"))
    return [f"{1e3 * kernel:.1f}", f"{error:.3f}"]


def main() -> None:
    """Harden and measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--concepts", nargs="+", default=["ghost"])
    parser.add_argument("--oracle", default="oracles/ghost")
    parser.add_argument("--rows", nargs="*", choices=NAMES, default=NAMES)
    parser.add_argument("--attacks", nargs="*", choices=ATTACKS, default=ATTACKS)
    args = parser.parse_args()
    title = " and ".join(args.concepts)
    asked = ["--concepts", *args.concepts, "--oracle", args.oracle, "--attacks", *ATTACKS]
    bench, oracle = open_bench(emoji_canvas.parsed(asked))
    ledger = Ledger(RESULTS)
    ledger.require(protocol_of(bench, oracle), title)
    target_of(bench, SEED)  # while the base is as it was
    for row in args.rows:
        erasures = erasures_of(row, args.run / title, args.concepts)
        with in_force(erasures, bench.model.pipeline):
            victim = (oracle if row == "oracle" else bench.model).pipeline
            measure(ledger, (title, row, SEED), bench, victim, args.attacks)
        print(row, ledger[title, row, SEED], flush=True)
    print(table(ledger, title, [row for row in args.rows if (title, row, SEED) in ledger]))


def measure(
    ledger: Ledger, key: tuple[Any, ...], bench: Bench, victim: Any, names: Sequence[str]
) -> None:
    """Note what is missing of a row's accuracies, distances and attacks."""
    if key not in ledger:
        ledger[key] = measured(victim, bench, None, None) | {"asr": {}}
    for name in names:
        if name not in (known := ledger[key])["asr"]:
            ledger[key] = known | {"asr": known["asr"] | attacked(bench, victim, [name])}


if __name__ == "__main__":
    main()
