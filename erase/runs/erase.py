"""One call from a request, or from an erasure to harden, to a measured Erasure in a folder."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from erase.erasure.erasure import Erasure
from erase.evaluate.base import Judge
from erase.evaluate.reports import Report
from erase.methods import get_method
from erase.methods.harden import HardenConfig
from erase.models.opening import Model
from erase.prompts.request import EraseRequest, in_its_names
from erase.runs.measure import OUTPUT_FILES, Measured, measured, write_measured
from erase.runs.opening import Measures, Opened, of_base, open_all
from erase.runs.state import carry_out, note_run, options_of, require_method, run_digest
from erase.support.config import NotNegative
from erase.support.progress import WholeRun
from erase.tasks.diffusion.task import DiffusionTask, DiffusionTaskConfig
from erase.training.config import TrainedConfig, TrainingConfig

PASSES_A_STEP = 8  # of each sample: forward, backward, and a teacher's, of both sets
BATCH = 32  # of hardening, as the bundled model's oracles learnt


@dataclass(frozen=True)
class RunConfig(Measures):
    """Everything one run depends on; equal configs give equal artefacts.

    Args:
        request: what to forget, what to draw instead, and what must stay.
        model: emoji, a pipeline folder, a hub id or a file of weights.
        method: one of those that `erase methods` lists.
        method_config: the dataclass that the method registered, its defaults if None.
        task: what may change, and the pictures to train on.
        evaluate: whether anything is drawn and judged; `erase measure` can do it later.
    """

    request: EraseRequest
    model: str = "emoji"
    method: str = "salun"
    method_config: Any = None
    task: DiffusionTaskConfig = field(default_factory=DiffusionTaskConfig)
    evaluate: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_method(self, DiffusionTask)
        trains = issubclass(get_method(self.method).config, TrainedConfig)
        if trains and self.offload != "none":
            raise ValueError(f"The method {self.method} trains, for which weights stay where they "
                             "are; leave out offload, or choose one that does not.")  # fmt: skip
        if not self.evaluate and (self.judge or self.oracle):
            raise ValueError("A judge and an oracle are of no use without evaluation; name them "
                             "when the erasure is measured.")  # fmt: skip


def run(
    config: RunConfig,
    output: str | Path,
    model: Model | None = None,
    judge: Judge | None = None,
    erased: Callable[[Erasure], None] = lambda erasure: None,
    oracle: Model | None = None,
) -> Report | None:
    """Erase, measure and write `output`: artefact, card, report.json, report.md and grid.png.

    Training state lies beside `output` until the run is whole, so that an interrupted run goes on
    where it stopped. Processes share the drawing and judging too; the first writes, and alone
    returns the report; there is none without evaluation. `model`, `judge` and `oracle` may be open
    already; `erased` is told of the erasure before it is measured. Raises ValueError on bad input,
    before any work.
    """
    started = time.perf_counter()
    method, options = get_method(config.method), options_of(config, DiffusionTask)

    def open_() -> Opened:
        opened = open_run(config, model, judge, oracle)
        return replace(opened, digest=run_digest(config, opened.task))

    def work(opened: Opened) -> Measured:
        whole.expect(_passes(config, opened, method.needs(opened.task, options).training))
        erasure = method(opened.task, options)
        base = {"model": config.model, **config.own_files}
        request = in_its_names(config.request, opened.model.catalogue)
        note_run(erasure, opened.digest, options, asdict(request), **base)
        erased(erasure)
        return measured(config, opened, erasure, started) if config.evaluate else Measured(erasure)

    with WholeRun() as whole:
        return carry_out(output, OUTPUT_FILES, open_, work, write_measured, attrgetter("digest"))


def _passes(config: RunConfig, opened: Opened, training: TrainingConfig | None) -> dict[str, float]:
    """About how many pictures pass through the denoiser in each part, by what its bar is called."""
    task, counted = opened.task, config.evaluation
    judged = counted.forget_pictures + counted.retain_pictures
    each = 2 if task.denoiser.guided else 1
    parts: dict[str, float] = {}
    if training:
        forget, retain = task.config.forget_pictures, task.config.retain_pictures
        counts = {"forget set": forget, "anchor pictures": forget, "retain set": retain}
        parts = {name: each * task.sampling.steps * count for name, count in counts.items()}
        parts["erasing"] = PASSES_A_STEP * task.config.batch_size * training.max_train_steps
    models = ("base", "erased", *(["oracle"] if opened.oracle else [])) if config.evaluate else ()
    return parts | {f"judging the {name}": each * opened.sampling.steps * judged for name in models}


def open_run(
    config: RunConfig,
    model: Model | None = None,
    judge: Judge | None = None,
    oracle: Model | None = None,
) -> Opened:
    """All that the run works with, but for what is open already; ValueError on bad input.

    Where nothing is drawn, neither by the method, the denoiser stays in its files.
    """
    method = get_method(config.method)
    text_alone = not config.evaluate and method.text_alone(config.method_config or method.config())
    steps = config.evaluation.steps
    return open_all(
        config, config.request, config.task, steps, model, judge, oracle,
        judged=config.evaluate, text_alone=text_alone,
    )  # fmt: skip


@dataclass(frozen=True)
class HardenRun(Measures):
    """Which erasure is hardened, and how.

    Args:
        erasure: its folder.
        effort: the cost, as a share of training the model anew; 0 is what harden.effort says.
        model: the base, if it is not where the recipe says.
        harden: all there is to choose.
        task: what may change, and how the teacher's pictures are drawn; of the erasure's own size
            unless another is asked.
        evaluate: whether anything is drawn and judged; `erase measure` can do it later.
    """

    erasure: str
    effort: NotNegative[float] = 0.0
    model: str = ""
    harden: HardenConfig = field(default_factory=HardenConfig)
    task: DiffusionTaskConfig = field(default_factory=lambda: DiffusionTaskConfig(batch_size=BATCH))
    evaluate: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.harden.folder:
            raise ValueError("harden.folder is the erasure, which is named already; leave it out.")


def run_config(asked: HardenRun) -> RunConfig:
    """The run of the method `harden` on what the erasure's recipe says of model and request.

    Raises ValueError for a folder that holds no erasure, or one that says neither.
    """
    erasure = Erasure.from_pretrained(asked.erasure)
    named = of_base(asked, erasure)
    size = named.task.size or erasure.facts.size
    named = replace(named, task=replace(named.task, size=size))
    effort = asked.effort or asked.harden.effort
    method = replace(asked.harden, folder=asked.erasure, effort=effort)
    both = {part.name for part in fields(HardenRun)} & {part.name for part in fields(RunConfig)}
    same = {name: getattr(named, name) for name in both}
    return RunConfig(erasure.facts.asked(), method="harden", method_config=method, **same)


def harden(asked: HardenRun, output: str | Path, model: Model | None = None) -> Report | None:
    """Harden an erasure, measure the result and write `output`, as `run` does with a request.

    Training goes on where it was interrupted. Raises ValueError on bad input, before any work.
    """
    return run(run_config(asked), output, model)
