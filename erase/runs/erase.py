"""One call from a request to a measured Erasure in a folder."""

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from erase.erasure.erasure import FILES, Erasure
from erase.evaluate.base import Judge
from erase.evaluate.pictures.generation import (
    EvaluationConfig,
    EvaluationPictures,
    draw_evaluation,
    judge_drawn,
    kernel_distances,
)
from erase.evaluate.pictures.judges import judge_line
from erase.evaluate.pictures.report import REPORT_FILES, write_report
from erase.evaluate.reports import Cost, Report
from erase.evaluate.tables import measured_lines
from erase.methods import get_method
from erase.models.opening import Model
from erase.prompts.request import EraseRequest
from erase.prompts.seeds import EVALUATION_SEED
from erase.runs.opening import Names, Opened, open_all
from erase.runs.state import carry_out, note_run, options_of, require_method, run_digest
from erase.support.progress import whole_run
from erase.tasks.diffusion.task import DiffusionTask, DiffusionTaskConfig
from erase.training.config import TrainedConfig, TrainingConfig

PASSES_A_STEP = 8  # of each sample: forward, backward, and a teacher's, of both sets
OUTPUT_FILES = (*FILES, *REPORT_FILES)


@dataclass(frozen=True)
class RunConfig(Names):
    """Everything one run depends on; equal configs give equal artefacts.

    Args:
        request: what to forget, what to draw instead, and what must stay.
        model: emoji, a pipeline folder, a hub id or a file of weights.
        method: one of those that `erase methods` lists.
        method_config: the dataclass that the method registered, its defaults if None.
        task: what may change, and the pictures to train on.
        evaluation: the pictures to judge.
        judge: an open_clip name or local-dir:FOLDER; by default the bundled judge, for models that
            draw what it knows.
        oracle: a pipeline trained without the concept, to measure beside base and erased.
    """

    request: EraseRequest
    model: str = "emoji"
    method: str = "salun"
    method_config: Any = None
    task: DiffusionTaskConfig = field(default_factory=DiffusionTaskConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    judge: str = ""
    oracle: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_method(self, DiffusionTask)
        _require_in_place(self)
        counts = self.evaluation.forget_pictures, self.evaluation.retain_pictures
        if self.oracle and min(counts) < 3:
            raise ValueError(f"The distance to an oracle needs 3 pictures of a set, not "
                             f"{min(counts)}; draw more.")  # fmt: skip


def _require_in_place(config: RunConfig) -> None:
    trains = issubclass(get_method(config.method).config, TrainedConfig)
    if trains and config.offload != "none":
        raise ValueError(f"The method {config.method} trains, for which weights stay where they "
                         "are; leave out offload, or choose one that does not.")  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """An erasure, what was drawn to measure it, and the report."""

    erasure: Erasure
    drawn: Mapping[str, EvaluationPictures]
    report: Report


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
    returns the report. `model`, `judge` and `oracle` may be open already; `erased` is told of the
    erasure before it is measured. Raises ValueError on bad input, before any work.
    """
    started = time.perf_counter()
    method, options = get_method(config.method), options_of(config, DiffusionTask)

    def open_() -> Opened:
        opened = open_run(config, model, judge, oracle)
        return replace(opened, digest=run_digest(config, opened.task))

    def work(opened: Opened) -> Measured:
        whole.expect(_passes(config, opened, method.needs(opened.task, options).training))
        erasure = method(opened.task, options)
        note_run(erasure, opened.digest, options, asdict(config.request), model=config.model)
        erased(erasure)
        drawn = _draw_all(config, opened, erasure)
        return Measured(erasure, drawn, _report(config, opened, drawn, erasure, started))

    def write(_: Opened, done: Measured, folder: Path) -> Report:
        erasure, drawn, report = done.erasure, done.drawn, done.report
        erasure.recipe["report"] = report.to_json() | {"table": measured_lines(report)}
        erasure.write(folder)
        write_report(report, drawn, folder, erasure.facts.layers)
        return report

    with whole_run() as whole:
        return carry_out(output, OUTPUT_FILES, open_, work, write, attrgetter("digest"))


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
    models = ("base", "erased", *(["oracle"] if opened.oracle else []))
    return parts | {f"judging the {name}": each * opened.sampling.steps * judged for name in models}


def open_run(
    config: RunConfig,
    model: Model | None = None,
    judge: Judge | None = None,
    oracle: Model | None = None,
) -> Opened:
    """All that the run works with, but for what is open already; ValueError on bad input."""
    steps = config.evaluation.steps
    return open_all(config, config.request, config.task, steps, model, judge, oracle)


def _draw_all(config: RunConfig, opened: Opened, erasure: Erasure) -> dict[str, EvaluationPictures]:
    """What base, erased model and oracle draw for the same prompts and seeds."""

    def drawn(model: Model, name: str) -> EvaluationPictures:
        with model.drawing() as pipeline:
            return draw_evaluation(
                pipeline, opened.prompts, opened.sampling, config.evaluation,
                f"judging the {name}",
            )  # fmt: skip

    both = {"base": drawn(opened.model, "base")}
    with erasure.apply(opened.model.pipeline.components):
        both["erased"] = drawn(opened.model, "erased")
    return both | ({"oracle": drawn(opened.oracle, "oracle")} if opened.oracle else {})


def _report(
    config: RunConfig,
    opened: Opened,
    drawn: Mapping[str, EvaluationPictures],
    erasure: Erasure,
    started: float,
) -> Report:
    judge, labels = opened.judge, opened.prompts.labels
    return Report(
        request=asdict(config.request),
        method=config.method,
        protocol=_protocol(config, opened),
        metrics={name: judge_drawn(one, judge, labels) for name, one in drawn.items()},
        distances=kernel_distances(drawn, judge) if opened.oracle else {},
        cost=_cost(erasure, time.perf_counter() - started),
    )


def _protocol(config: RunConfig, opened: Opened) -> dict[str, Any]:
    sampling, prompts, judge = opened.sampling, opened.prompts, opened.judge
    return {
        "model": config.model,
        **({"oracle": opened.oracle.name} if opened.oracle else {}),
        "judge": judge_line(judge),
        "labels": {kind: len(names) for kind, names in prompts.labels.items()},
        "scheduler": type(opened.model.pipeline.scheduler).__name__,
        "steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
        **({"size": sampling.size} if sampling.size else {}),
        "prompts": f"{len(prompts.forget)} forget, {len(prompts.retain)} retain, sampled evenly",
        "seeds": f"one a picture from {EVALUATION_SEED}",
        "intervals": "95 % Wilson",
    }


def _cost(erasure: Erasure, seconds: float) -> Cost:
    return Cost(
        seconds=round(seconds, 1),
        peak_memory_bytes=_peak_memory(),
        artefact_bytes=erasure.nbytes,
        edited_parameters=sum(delta.count for delta in erasure.deltas.values()),
    )


def _peak_memory() -> int:
    """This process' highest resident memory so far, in bytes."""
    if platform.system() == "Windows":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    # Linux counts kilobytes, macOS bytes.
    unit = 1 if platform.system() == "Darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
