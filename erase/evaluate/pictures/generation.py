"""What a judge sees in the pictures of a pipeline: forget, retain and cross-retain accuracy."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from diffusers import DiffusionPipeline
from torch import Tensor

from erase.evaluate.base import Judge, ReadsCaptions, ReadsNames
from erase.evaluate.pictures.fidelity import kernel_distance
from erase.evaluate.pictures.judges import embedded_drawn
from erase.evaluate.reports import Distance, Figure, Metrics, wilson_share
from erase.prompts.catalogue import Sampling
from erase.prompts.request import Prompt, PromptSet, sample
from erase.prompts.seeds import EVALUATION_SEED
from erase.support.config import Config, NotNegative, Positive
from erase.tasks.diffusion.sampling import draw

SIDES = ("forget", "retain")
NEAREST = 5  # concepts


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
    """Draw the evaluation pictures; prompts and seeds are alike for every model.

    Processes share the drawing, and what follows the judging: each must call it.
    """
    chosen, forget_count = evaluation_prompts(prompts, config)
    seeds = range(EVALUATION_SEED, EVALUATION_SEED + len(chosen))
    texts = [prompt.text for prompt in chosen]
    pictures = draw(pipeline, texts, seeds, sampling, "pt", description, shared=True)
    return EvaluationPictures(pictures.float(), chosen, forget_count)


def evaluation_prompts(prompts: PromptSet, config: EvaluationConfig) -> tuple[list[Prompt], int]:
    """The prompts that are judged, forget prompts first, and how many of those there are."""
    forget = sample(prompts.forget, config.forget_pictures, EVALUATION_SEED)
    retain = sample(prompts.retain, config.retain_pictures, EVALUATION_SEED)
    return forget + retain, len(forget)


def judge_drawn(
    drawn: EvaluationPictures,
    judge: Judge,
    labels: Mapping[str, Sequence[str]],
    embeddings: Tensor | None = None,
) -> Metrics:
    """The three accuracies and, by a judge that reads, the mean score of the retained prompts.

    Forget accuracy is the share of pictures of forget prompts that still show the forgotten concept
    they name, over all and for each concept. Where a prompt names a forgotten object and a
    forgotten style, showing one of the two is enough, and the picture counts for the object.
    Retain accuracy is the share of pictures of retained prompts that show what they name of the
    kind that was erased. Cross-retain accuracy judges the same pictures by the other kind (the
    style of an object's prompt), where their prompts name one, and companion accuracy the pictures
    of forget prompts. Where two kinds were erased, a retained picture counts for the share of the
    two that it shows, so that n is pictures. The NEAREST of the retained concepts that were drawn
    to each forgotten one, by the judge's reading of their names, have a retain accuracy of their
    own. `embeddings` are the judge's of the pictures, if it has looked at them.
    """
    embeddings = embedded_drawn(judge, drawn.pictures) if embeddings is None else embeddings
    seen = {kind: judge.classify(embeddings, kind, names) for kind, names in labels.items()}
    forget, retain = range(drawn.forget_count), range(drawn.forget_count, len(drawn.prompts))
    near, score = _nearest(drawn, judge, labels), None

    def hits(i: int, erased_kind: bool) -> dict[tuple[str, str], bool]:
        return {
            (kind, name): seen[kind][i] == name
            for kind, name in drawn.prompts[i].labels.items()
            if (kind in drawn.prompts[i].kinds) == erased_kind
        }

    def shown(indices: Iterable[int]) -> Figure:
        return wilson_share([any(hits(i, True).values()) for i in indices])

    concepts = dict.fromkeys(drawn.prompts[i].group for i in forget)
    by_concept = {c: shown(i for i in forget if drawn.prompts[i].group == c) for c in concepts}
    sides = (retain, True), (retain, False), (forget, False)
    kept, cross, companions = ([hits(i, own) for i in side] for side, own in sides)
    beside = [{part: hit for part, hit in found.items() if part in near} for found in kept]
    if isinstance(judge, ReadsCaptions):
        captions = [drawn.prompts[i].text for i in retain]
        scores = judge.score(embeddings[drawn.forget_count :], captions)
        score = Figure(round(scores.mean().item(), 4), len(captions))
    return Metrics(
        forget_accuracy=shown(forget),
        forget_accuracy_by_concept=by_concept,
        retain_accuracy=wilson_share([fmean(found.values()) for found in kept]),
        cross_retain_accuracy=_share(cross),
        companion_accuracy=_share(companions),
        clip_score=score,
        nearest_retain_accuracy=_share(beside),
        nearest=[name for _, name in near] or None,
    )


def _share(pictures: Iterable[Mapping[tuple[str, str], bool]]) -> Figure | None:
    """The mean share of what each picture is asked for that it shows, of those asked for any."""
    parts = [fmean(found.values()) for found in pictures if found]
    return wilson_share(parts) if parts else None


def _nearest(
    drawn: EvaluationPictures, judge: Judge, labels: Mapping[str, Sequence[str]]
) -> list[tuple[str, str]]:
    """By kind and name what is retained and the judge reads most like forgotten, if it reads."""
    if not isinstance(judge, ReadsNames):
        return []
    forgotten, kept = (
        dict.fromkeys((kind, one.labels[kind]) for one in prompts for kind in one.kinds)
        for prompts in (drawn.prompts[: drawn.forget_count], drawn.prompts[drawn.forget_count :])
    )
    near: list[tuple[str, str]] = []
    for kind, name in forgotten:
        others = [(kind, one) for one in judge.nearest(kind, name, labels[kind])]
        near += [other for other in others if other in kept][:NEAREST]
    return list(dict.fromkeys(near))


def by_side(embeddings: Tensor, forget_count: int) -> dict[str, Tensor]:
    """A judge's embeddings [n, d] of either side's pictures."""
    return dict(zip(SIDES, embeddings.tensor_split([forget_count]), strict=True))


def kernel_distances(
    embeddings: Mapping[str, Tensor], forget_count: int
) -> dict[str, dict[str, Distance]]:
    """Of "base" and "erased" from "oracle", by a judge's embeddings [n, d], for either side."""
    features = {name: by_side(one, forget_count) for name, one in embeddings.items()}
    return {
        name: {
            side: kernel_distance(features[name][side], features["oracle"][side]) for side in SIDES
        }
        for name in ("base", "erased")
    }
