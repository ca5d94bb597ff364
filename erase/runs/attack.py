"""One call from an erasure folder to a measured attack report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline
from torch import Tensor

from erase.attacks import attacks
from erase.attacks.base import Outcome, Shows, Target, predict_base
from erase.erasure.erasure import Erasure
from erase.evaluate.pictures.clip import ClipJudge, wilson_share
from erase.evaluate.tables import interval
from erase.models.family import family_of
from erase.models.opening import Model, load_model
from erase.prompts.request import EraseRequest, Prompt, PromptSet, expand, sample
from erase.runs.erase import judge_of
from erase.support.files import check_writable, replaced_folder
from erase.support.pictures import save_grid
from erase.tasks.diffusion.sampling import draw

PICTURES_SEED = 6_000_000


@dataclass(frozen=True)
class AttackRun:
    """Which erasure is attacked, and how.

    erasure: its folder. attacks: names, by default all. configs: each attack's own config, its
    defaults if missing. prompts: how many prompts that name the concept. scales: strengths at which
    the erasure is tried too, 1 being the whole. model, judge: the base and the judge, if others
    than the recipe and the model name. oracle: a pipeline trained without the concept, which shows
    what each attack makes of nothing.
    """

    erasure: str
    attacks: Sequence[str] = ()
    configs: Mapping[str, Any] = field(default_factory=dict)
    prompts: int = 32
    scales: Sequence[float] = (0.5, 0.75)
    seed: int = 0
    model: str = ""
    judge: str = ""
    oracle: str = ""


def run_attacks(
    run: AttackRun,
    output: str | Path,
    model: Model | None = None,
    judge: ClipJudge | None = None,
    oracle: Model | None = None,
) -> dict[str, Any]:
    """Attack the erased model and write attacks.json, attacks.md and a gallery of each attack.

    Pre-ASR is the share of prompts whose picture shows the concept without an attack, ASR that with
    it. `model`, `judge`, `oracle` may be open already. Raises ValueError on bad input, before work.
    """
    names = list(run.attacks) or list(attacks())
    unknown = set(names) - set(attacks())
    if unknown:
        raise ValueError(f"There is no attack {unknown.pop()}; choose of {', '.join(attacks())}.")
    output = Path(output).resolve()
    check_writable(output)
    erasure = Erasure.from_pretrained(run.erasure)
    model = model or load_model(run.model or erasure.base_model)
    if family_of(model.pipeline).name != "sd":
        raise ValueError(
            f"{model.name} is a {type(model.pipeline).__name__}, and attacks are written for "
            "StableDiffusionPipeline; attack an erasure of such a model."
        )
    if oracle is None and run.oracle:
        oracle = load_model(run.oracle, str(model.pipeline.device))
    if "request" not in erasure.recipe:
        raise ValueError(f"{run.erasure} does not say what it forgets; attack one of `erase run`.")
    prompts, judge = asked_prompts(erasure, model), judge or judge_of(run.judge, model)
    target = build_target(model.pipeline, model, prompts, judge, run.prompts, run.seed)
    leaks = {scale: _hits_at_scale(erasure, target, scale) for scale in run.scales}

    def attacked(target: Target) -> dict[str, Outcome]:
        return {name: attacks()[name](target, run.configs.get(name)) for name in names}

    with erasure.apply(model.pipeline.components):
        outcomes = attacked(target)
    of_oracle = attacked(replace(target, pipeline=oracle.pipeline)) if oracle else {}
    report = {
        "erasure": erasure.recipe.get("method"),
        "concepts": erasure.recipe["request"]["concepts"],
        "protocol": {
            "judge": f"{Path(judge.name).name} {judge.fingerprint}",
            **({"oracle": oracle.name} if oracle else {}),
            "seed": run.seed,
            "steps": target.sampling.steps,
            "guidance_scale": target.sampling.guidance_scale,
            "configs": {n: asdict(run.configs.get(n) or attacks()[n].config()) for n in names},
        },
        "attacks": {name: _figures(outcome) for name, outcome in outcomes.items()},
        "oracle": {name: _figures(outcome) for name, outcome in of_oracle.items()},
        "strength": leaks,
    }
    with replaced_folder(output) as partial:
        (partial / "attacks.json").write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")
        (partial / "attacks.md").write_text(attack_table(report) + "\n")
        for name, outcome in outcomes.items():
            save_grid(outcome.pictures, partial / f"{name}.png", 8)
    return report


def asked_prompts(erasure: Erasure, model: Model) -> PromptSet:
    """The prompts of the request that the erasure answers."""
    asked = erasure.recipe["request"]
    fields = {k: v for k, v in asked.items() if k in EraseRequest.__dataclass_fields__}
    request = EraseRequest(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
    return expand(request, model.catalogue)


def build_target(
    victim: StableDiffusionPipeline,
    base: Model,
    prompts: PromptSet,
    judge: ClipJudge,
    count: int,
    seed: int,
) -> Target:
    """The victim as a target, with `count` forget prompts; the base draws pictures for it now.

    The victim may be the base's own pipeline, if an erasure is applied to it later.
    """
    chosen = sample(prompts.forget, count, PICTURES_SEED + seed)
    others = [prompt.text for prompt in sample(prompts.retain, count, PICTURES_SEED + seed)]
    texts, first = [prompt.text for prompt in chosen], PICTURES_SEED + 10_000 * seed

    def drawn(wanted: Sequence[str], what: str) -> Tensor:
        seeds = range(first, first + len(wanted))
        return draw(base.pipeline, wanted, seeds, base.sampling, "pt", what).float()

    pictures, shows = drawn(texts, "pictures of the concept"), _judged_by(judge, prompts)
    benign = others, drawn(others, "benign pictures")
    memory = predict_base(base.pipeline, pictures, texts, first)
    return Target(victim, chosen, pictures, shows, base.sampling, benign, memory, seed)


def attack_table(report: Mapping[str, Any]) -> str:
    """Pre-ASR, ASR, budget and n of every attack, and the hits at lower strengths."""
    oracle = report["oracle"]
    head = ["attack", "Pre-ASR", "ASR", *(["ASR of the oracle"] if oracle else [])]
    rows = [[*head, "UNet evaluations", "n"]]
    rows.append(["---"] * len(rows[0]))
    for name, figures in report["attacks"].items():
        shares = [figures["pre_asr"], figures["asr"]]
        shares += [oracle[name]["asr"]] if oracle else []
        n = figures["asr"]["n"]
        rows.append([name, *map(interval, shares), str(figures["forward_passes"]), str(n)])
    blank = [""] if oracle else []
    rows += [
        [f"strength {scale}", "", interval(leak), *blank, "", str(leak["n"])]
        for scale, leak in report["strength"].items()
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _judged_by(judge: ClipJudge, prompts: PromptSet) -> Shows:
    def shows(pictures: Tensor, asked: Sequence[Prompt]) -> list[bool]:
        embeddings = judge.embed(pictures)
        seen = {kind: judge.classify(embeddings, kind, prompts.labels[kind])
                for kind in prompts.labels}  # fmt: skip
        return [
            all(seen[kind][i] == prompt.labels[kind] for kind in prompt.kinds)
            for i, prompt in enumerate(asked)
        ]

    return shows


def _hits_at_scale(erasure: Erasure, target: Target, scale: float) -> dict[str, Any]:
    with erasure.apply(target.pipeline.components, scale):
        pictures = target.drawn(description=f"strength {scale}")
    return wilson_share(target.shows(pictures, target.prompts))


def _figures(outcome: Outcome) -> dict[str, Any]:
    return {
        "pre_asr": wilson_share(outcome.plain_hits),
        "asr": wilson_share(outcome.hits),
        "forward_passes": outcome.forward_passes,
        **outcome.details,
    }
