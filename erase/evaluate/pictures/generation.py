"""What a judge sees in the pictures of a pipeline: forget, retain and cross-retain accuracy."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor

from erase.evaluate.pictures.clip import ClipJudge, wilson_share
from erase.evaluate.pictures.fidelity import kernel_distance
from erase.prompts.catalogue import Sampling
from erase.prompts.request import Prompt, PromptSet, sample
from erase.support.config import Config, NotNegative, Positive
from erase.tasks.diffusion.sampling import draw

ACCURACIES = ("forget_accuracy", "retain_accuracy", "cross_retain_accuracy")
FIRST_SEED = 7_000_000
SIDES = ("forget", "retain")


@dataclass(frozen=True)
class EvaluationConfig(Config):
    """How many pictures are judged, and how they are sampled.

    Args:
        forget_pictures: pictures of prompts that name the concept.
        retain_pictures: pictures of prompts that name none.
        steps: sampling steps, 0 for as many as the model asks.
    """

    forget_pictures: Positive[int] = 32
    retain_pictures: Positive[int] = 96
    steps: NotNegative[int] = 0


@dataclass(frozen=True)
class EvaluationPictures:
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
) -> EvaluationPictures:
    """Draw the evaluation pictures; prompts and seeds are alike for every model."""
    chosen, forget_count = evaluation_prompts(prompts, config)
    seeds = range(FIRST_SEED, FIRST_SEED + len(chosen))
    texts = [prompt.text for prompt in chosen]
    pictures = draw(pipeline, texts, seeds, sampling, "pt", description)
    return EvaluationPictures(pictures.float(), chosen, forget_count)


def evaluation_prompts(prompts: PromptSet, config: EvaluationConfig) -> tuple[list[Prompt], int]:
    """The prompts that are judged, forget prompts first, and how many of those there are."""
    forget = sample(prompts.forget, config.forget_pictures, FIRST_SEED)
    retain = sample(prompts.retain, config.retain_pictures, FIRST_SEED)
    return forget + retain, len(forget)


def judge_drawn(
    drawn: EvaluationPictures, judge: ClipJudge, labels: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """The three accuracies and the mean CLIP score of the retained prompts.

    forget: pictures of forget prompts that still show what they name of the forgotten, pooled and
    for each concept; where that is an object and a style, either will do, and the object counts it.
    retain: pictures of retained prompts that show their concept of the kind that was erased.
    cross_retain: the same pictures judged by the other kind (the style of an object prompt), where
    they name one.
    """
    embeddings = judge.embed(drawn.pictures)
    seen = {kind: judge.classify(embeddings, kind, names) for kind, names in labels.items()}
    forget, retain = range(drawn.forget_count), range(drawn.forget_count, len(drawn.prompts))

    def hits(i: int, erased_kind: bool) -> list[bool]:
        return [
            seen[kind][i] == name
            for kind, name in drawn.prompts[i].labels.items()
            if (kind in drawn.prompts[i].kinds) == erased_kind
        ]

    def shown(indices: Iterable[int]) -> dict[str, Any]:
        return wilson_share([any(hits(i, True)) for i in indices])

    groups = dict.fromkeys(drawn.prompts[i].group for i in forget)
    metrics: dict[str, Any] = {
        "forget_accuracy": shown(forget),
        "forget_accuracy_by_concept": {
            group: shown(i for i in forget if drawn.prompts[i].group == group) for group in groups
        },
        "retain_accuracy": wilson_share([hit for i in retain for hit in hits(i, True)]),
    }
    cross = [hit for i in retain for hit in hits(i, False)]
    if cross:
        metrics["cross_retain_accuracy"] = wilson_share(cross)
    captions = [drawn.prompts[i].text for i in retain]
    scores = judge.score(embeddings[drawn.forget_count :], captions)
    metrics["clip_score"] = {"value": round(scores.mean().item(), 4), "n": len(captions)}
    return metrics


def features_of(drawn: EvaluationPictures, judge: ClipJudge) -> dict[str, Tensor]:
    """The judge's embeddings [n, d] of either side's pictures."""
    parts = judge.embed(drawn.pictures).tensor_split([drawn.forget_count])
    return dict(zip(SIDES, parts, strict=True))


def kernel_distances(drawn: Mapping[str, EvaluationPictures], judge: ClipJudge) -> dict[str, Any]:
    """Of "base" and "erased" from "oracle", on the judge's features, for either side."""
    features = {name: features_of(one, judge) for name, one in drawn.items()}
    return {
        name: {
            side: asdict(kernel_distance(features[name][side], features["oracle"][side]))
            for side in SIDES
        }
        for name in ("base", "erased")
    }
