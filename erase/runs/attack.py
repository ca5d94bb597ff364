"""One call from an erasure folder to a measured attack report."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor

from erase.attacks import attacks, get_attack, serving
from erase.attacks.base import Outcome, Shows, Target, predict_base
from erase.erasure.erasure import Erasure
from erase.evaluate.base import Judge
from erase.evaluate.pictures.judges import embedded_drawn
from erase.evaluate.reports import AttackFigures, AttackReport, Figure, wilson_share
from erase.evaluate.tables import attack_table
from erase.models.family import FAMILIES, Family
from erase.models.opening import Model
from erase.prompts.catalogue import Sampling
from erase.prompts.request import Prompt, PromptSet, sample
from erase.prompts.seeds import TARGET_SEED, of_attack
from erase.runs.opening import Names, Opened, of_base, open_all
from erase.runs.state import carry_out
from erase.support.config import Positive
from erase.support.files import write_json, write_text
from erase.support.pictures import save_grid
from erase.tasks.diffusion.config import DiffusionTaskConfig
from erase.tasks.diffusion.learned import denoiser_of
from erase.tasks.diffusion.sampling import OutputType, draw

Attacked = tuple[AttackReport, dict[str, Tensor]]  # with what each attack drew


@dataclass(frozen=True)
class AttackRun(Names):
    """Which erasure is attacked, and how.

    Args:
        erasure: its folder.
        attacks: of those that `erase attacks` lists; by default all that serve the model.
        configs: each attack's own config by its name, its defaults if missing.
        prompts: how many prompts that name the concept.
        scales: strengths at which the erasure is tried too, 1 being the whole.
        seed: of prompts, noise and searches.
        model: the base, if it is not where the recipe says.
    """

    erasure: str
    attacks: Sequence[str] = ()
    configs: Mapping[str, Any] = field(default_factory=dict)
    prompts: Positive[int] = 32
    scales: Sequence[float] = (0.5, 0.75)
    seed: int = 0
    model: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (*self.attacks, *self.configs):
            get_attack(name)
        if self.offload != "none":
            raise ValueError("Attacks look for gradients, for which weights stay where they are; "
                             "leave out offload.")  # fmt: skip


def run_attacks(
    run: AttackRun,
    output: str | Path,
    model: Model | None = None,
    judge: Judge | None = None,
    oracle: Model | None = None,
) -> AttackReport | None:
    """Attack the erased model and write attacks.json, attacks.md and a gallery of each attack.

    Pre-ASR is the share of prompts whose picture shows the concept without an attack, ASR that with
    it. `model`, `judge`, `oracle` may be open already. Processes share the pictures, and each
    searches and finetunes alike; the first alone returns the report. Raises ValueError on bad
    input, before work.
    """
    erasure, configs = Erasure.from_pretrained(run.erasure), dict[str, Any]()

    def open_() -> Opened:
        asked, family = erasure.facts.asked(), FAMILIES.get(erasure.facts.base.family)
        if family:  # known before the model is opened
            _require_served(run, family)
        names = run if model else of_base(run, erasure)
        task = DiffusionTaskConfig(size=erasure.facts.size)
        opened = open_all(names, asked, task, model=model, judge=judge, oracle=oracle)
        _require_served(run, opened.task.family)
        configs.update(_serving(run, opened))
        return opened

    def write(_: Opened, done: Attacked, folder: Path) -> AttackReport:
        report, galleries = done
        write_json(folder / "attacks.json", report.to_json())
        write_text(folder / "attacks.md", attack_table(report) + "\n")
        for name, pictures in galleries.items():
            save_grid(pictures, folder / f"{name}.png", 8)
        return report

    return carry_out(
        output, (), open_, lambda opened: attacked(run, opened, erasure, configs), write
    )


def _serving(run: AttackRun, opened: Opened) -> dict[str, Any]:
    """The attacks that are asked for, or all that serve the model, each with its config.

    Raises ValueError for one that is asked for and does not serve it.
    """
    model, found = opened.model, {}
    denoiser = denoiser_of(model.pipeline, opened.sampling)
    for name in run.attacks or serving(opened.task.family):
        config = run.configs.get(name) or attacks()[name].config()
        try:
            attacks()[name].trial(denoiser, opened.sampling, config)
            found[name] = config
        except ValueError:
            if run.attacks:
                raise
    return found


def _require_served(run: AttackRun, family: Family) -> None:
    for name in run.attacks:
        get_attack(name).require_serves(family)


def attacked(
    run: AttackRun, opened: Opened, erasure: Erasure, configs: Mapping[str, Any]
) -> Attacked:
    """The report, and what each of the attacks drew from the erased model."""
    base, oracle, judge = opened.model, opened.oracle, opened.judge
    target = build_target(
        base.pipeline, base, opened.prompts, judge, run.prompts, run.seed, opened.sampling
    )
    leaks = {scale: _hits_at_scale(erasure, target, scale) for scale in run.scales}

    def outcomes(target: Target) -> dict[str, Outcome]:
        return {name: attacks()[name](target, config) for name, config in configs.items()}

    with erasure.apply(base.pipeline.components):
        found = outcomes(target)
    of_oracle = outcomes(target.with_pipeline(oracle.pipeline)) if oracle else {}
    report = AttackReport(
        erasure=erasure.facts.method or None,
        concepts=list(erasure.facts.concepts),
        protocol={
            "model": base.name,
            **opened.protocol,
            "prompts": f"{len(target.prompts)} of {len(opened.prompts.forget)}, sampled evenly",
            "seed": run.seed,
            "seeds": f"one a picture from {target.seeds.start}",
            "intervals": "95 % Wilson, of more pictures under what the one search found",
            "configs": {name: asdict(config) for name, config in configs.items()},
        },
        attacks={name: _figures(outcome) for name, outcome in found.items()},
        oracle={name: _figures(outcome) for name, outcome in of_oracle.items()},
        strength=leaks,
        untried=[name for name in attacks() if name not in found],
    )
    return report, {name: outcome.pictures for name, outcome in found.items()}


def build_target(
    victim: DiffusionPipeline,
    base: Model,
    prompts: PromptSet,
    judge: Judge,
    count: int,
    seed: int,
    sampling: Sampling | None = None,
) -> Target:
    """The victim as a target, with `count` forget prompts; the base draws pictures for it now.

    The victim may be the base's own pipeline, if an erasure is applied to it later. `sampling` is
    how both draw, by default as the base is meant to.
    """
    sampling = sampling or base.sampling
    chosen = sample(prompts.forget, count, TARGET_SEED + seed)
    others = [prompt.text for prompt in sample(prompts.retain, count, TARGET_SEED + seed)]
    texts, first = [prompt.text for prompt in chosen], of_attack(TARGET_SEED, seed)

    def drawn(wanted: Sequence[str], what: str, kind: OutputType = "pt") -> Tensor:
        seeds = range(first, first + len(wanted))
        return draw(base.pipeline, wanted, seeds, sampling, kind, what, shared=True).float()

    pictures, shows = drawn(texts, "pictures of the concept"), _judged_by(judge, prompts)
    benign = others, drawn(others, "benign pictures")
    denoiser = denoiser_of(base.pipeline, replace(sampling, size=pictures.shape[-1]))
    coded = None
    if denoiser.family.learned:
        of_concept, of_benign = (drawn(part, "latents", "latent") for part in (texts, others))
        coded = of_concept.to(denoiser.device), of_benign.to(denoiser.device)
    latents = coded[0] if coded else denoiser.latents(pictures)
    memory = predict_base(denoiser, latents, texts, first)
    target = Target(denoiser, chosen, pictures, shows, sampling, benign, memory, seed, coded)
    return target.with_pipeline(victim)


def _judged_by(judge: Judge, prompts: PromptSet) -> Shows:
    def shows(pictures: Tensor, asked: Sequence[Prompt]) -> list[bool]:
        embeddings = embedded_drawn(judge, pictures)
        seen = {kind: judge.classify(embeddings, kind, of) for kind, of in prompts.labels.items()}
        return [
            any(seen[kind][i] == prompt.labels[kind] for kind in prompt.kinds)
            for i, prompt in enumerate(asked)
        ]

    return shows


def _hits_at_scale(erasure: Erasure, target: Target, scale: float) -> Figure:
    with erasure.apply(target.pipeline.components, scale):
        pictures = target.drawn(description=f"strength {scale}")
    return wilson_share(target.shows(pictures, target.prompts))


def _figures(outcome: Outcome) -> AttackFigures:
    shares = wilson_share(outcome.plain_hits), wilson_share(outcome.hits)
    return AttackFigures(*shares, outcome.forward_passes, outcome.details)
