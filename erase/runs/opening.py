"""What a run on a pipeline works with, resolved once, before any work."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from erase.erasure.erasure import Erasure
from erase.evaluate.base import Judge
from erase.evaluate.pictures.generation import EvaluationConfig
from erase.evaluate.pictures.judges import judge_line, judge_of
from erase.models.opening import Found, Model, OpeningConfig, find_model, oracle_opening
from erase.prompts.catalogue import Sampling
from erase.prompts.names import SIGN, listed
from erase.prompts.request import EraseRequest, PromptSet, expand
from erase.support.files import expanded
from erase.tasks.diffusion.task import DiffusionTask, DiffusionTaskConfig

NOBODY: Any = None  # where nothing is judged


class Named(OpeningConfig):
    """What every run's config names: a model."""

    model: str


@dataclass(frozen=True, kw_only=True)
class Names(Named):
    """What judges and compares.

    Args:
        judge: an open_clip name or local-dir:FOLDER; by default the bundled judge, for models that
            draw what it knows.
        oracle: a pipeline trained without the concept. It shows what comes of none of it.
    """

    judge: str = ""
    oracle: str = ""


@dataclass(frozen=True, kw_only=True)
class Measures(Names):
    """What is drawn and judged.

    Args:
        evaluation: the pictures to judge.
    """

    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = self.evaluation.forget_pictures, self.evaluation.retain_pictures
        if self.oracle and min(counts) < 3:
            raise ValueError(f"The distance to an oracle needs 3 pictures of a set, not "
                             f"{min(counts)}; draw more.")  # fmt: skip


Asked = TypeVar("Asked", bound=Named)


def of_base(asked: Asked, erasure: Erasure) -> Asked:
    """The same, of the erasure's base as its recipe notes it; what is asked wins.

    Raises ValueError if nobody has noted it, or asks for one.
    """
    if asked.model:
        return asked
    noted: dict[str, Any] = {"model": erasure.base_model, **erasure.facts.base.own_files}
    return replace(asked, **noted | asked.own_files)


@dataclass(frozen=True)
class Opened:
    """The models of a run, its prompts, and how both are used.

    task: the model's forget and retain sets, with the sampling they are drawn with. sampling: how
    what is judged is drawn. oracle: a pipeline trained without the concept, if there is one.
    digest: what tells the run from others, if that is asked.
    """

    model: Model
    prompts: PromptSet
    task: DiffusionTask
    sampling: Sampling
    judge: Judge
    oracle: Model | None
    digest: str = ""

    @property
    def protocol(self) -> dict[str, Any]:
        """What judged pictures depend on, besides the model, their prompts and their seeds."""
        sampling, labels = self.sampling, self.prompts.labels
        return {
            **({"oracle": self.oracle.name} if self.oracle else {}),
            "judge": judge_line(self.judge),
            "labels": {kind: len(names) for kind, names in labels.items()},
            "scheduler": type(self.model.pipeline.scheduler).__name__,
            "steps": sampling.steps,
            "guidance_scale": sampling.guidance_scale,
            **({"size": sampling.size} if sampling.size else {}),
        }


def open_all(
    names: Names,
    request: EraseRequest,
    task: DiffusionTaskConfig | None = None,
    steps: int = 0,
    model: Model | None = None,
    judge: Judge | None = None,
    oracle: Model | None = None,
    judged: bool = True,
    text_alone: bool = False,
) -> Opened:
    """Open what is named and not given; what is judged is drawn in `steps`, 0 for the model's own.

    There is no judge where nothing is `judged`. `text_alone` leaves the denoiser in its files. The
    request and the judge are refused before the model is opened. Raises ValueError.
    """
    known = model or find_model(names.model, names)
    prompts = expand(request, known.catalogue)
    judge = (judge or judge_of(names.judge, known.catalogue, known.device)) if judged else NOBODY
    for labels in prompts.labels.values() if judged else ():
        judge.require(labels)
    model = known.open(text_alone) if isinstance(known, Found) else known
    sets = DiffusionTask(
        model.pipeline, prompts, model.sampling, task, request.seed,
        finetuning=model.finetuning(prompts),
    )  # fmt: skip
    steps = steps or model.sampling.steps
    sampling = replace(model.sampling, size=sets.sampling.size, steps=steps)
    if oracle is None and names.oracle:
        oracle = find_model(names.oracle, oracle_opening(names)).open()
    return Opened(model, prompts, sets, sampling, judge, oracle)


def kept_prompts(words: Sequence[str]) -> list[str]:
    """The prompts, in place of `@FILE` those in a file, in place of `@FOLDER` an erasure's.

    Those are what it was to change, the anchors, and what it kept. Raises ValueError for files as
    `listed` does, and for an erasure that does not say.
    """
    found: list[str] = []
    for word in words:
        folder = expanded(word.removeprefix(SIGN))
        if not (word.startswith(SIGN) and folder.is_dir()):
            found += listed([word])
            continue
        facts = Erasure.from_pretrained(folder).facts
        if not (asked := facts.task.get("redirected")):
            raise ValueError(f"The erasure in {folder} does not say which prompts it was to change "
                             "(one that was joined has parts); name others.")  # fmt: skip
        found += [*asked, *asked.values(), *facts.drawn.get("keep", [])]
    return list(dict.fromkeys(found))
