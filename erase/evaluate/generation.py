"""What a judge sees in the pictures of a pipeline: forget, retain and cross-retain accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor

from erase.catalogue import Sampling
from erase.evaluate.clip import ClipJudge, proportion
from erase.request import Prompt, PromptSet, sample
from erase.sampling import draw

ACCURACIES = ("forget_accuracy", "retain_accuracy", "cross_retain_accuracy")
FIRST_SEED = 7_000_000


@dataclass(frozen=True)
class EvaluationConfig:
    """How many pictures are judged, and how they are sampled.

    Args:
        forget_pictures: pictures of prompts that name the concept.
        retain_pictures: pictures of prompts that name none.
        steps: sampling steps, 0 for as many as the model asks.
    """

    forget_pictures: int = 32
    retain_pictures: int = 96
    steps: int = 0


@dataclass(frozen=True)
class Drawn:
    """The pictures of one model for the evaluation prompts, forget prompts first."""

    pictures: Tensor
    prompts: list[Prompt]
    forget_count: int


def draw_evaluation(
    pipeline: DiffusionPipeline,
    prompts: PromptSet,
    sampling: Sampling,
    config: EvaluationConfig,
    description: str,
) -> Drawn:
    """Draw the evaluation pictures; prompts and seeds are alike for every model."""
    forget = sample(prompts.forget, config.forget_pictures, FIRST_SEED)
    retain = sample(prompts.retain, config.retain_pictures, FIRST_SEED)
    chosen = forget + retain
    seeds = range(FIRST_SEED, FIRST_SEED + len(chosen))
    texts = [prompt.text for prompt in chosen]
    pictures = draw(pipeline, texts, seeds, sampling, "pt", description)
    return Drawn(pictures.float(), chosen, len(forget))


def judge_drawn(
    drawn: Drawn, judge: ClipJudge, labels: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """The three accuracies and the mean CLIP score of retained prompts.

    forget: pictures of forget prompts that still show the concept. retain: pictures of retained
    prompts that show their concept of the same kind. cross_retain: the same pictures, judged by
    the other kind (the style of an object prompt). No cross accuracy without a second kind.
    """
    seen = {kind: judge.classify(drawn.pictures, kind, names) for kind, names in labels.items()}
    forget = range(drawn.forget_count)
    retain = range(drawn.forget_count, len(drawn.prompts))
    right = [
        {kind: seen[kind][i] == name for kind, name in prompt.labels.items()}
        for i, prompt in enumerate(drawn.prompts)
    ]
    metrics = {
        "forget_accuracy": proportion([right[i][drawn.prompts[i].kind] for i in forget]),
        "retain_accuracy": proportion([right[i][drawn.prompts[i].kind] for i in retain]),
    }
    cross = [hit for i in retain for kind, hit in right[i].items() if kind != drawn.prompts[i].kind]
    if cross:
        metrics["cross_retain_accuracy"] = proportion(cross)
    texts = [drawn.prompts[i].text for i in retain]
    scores = judge.score(drawn.pictures[drawn.forget_count :], texts)
    metrics["clip_score"] = {"value": round(scores.mean().item(), 4), "n": len(texts)}
    return metrics
