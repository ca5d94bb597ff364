"""Drawing and judging what an erasure does, in its run or later."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erase.erasure.erasure import FILES, Erasure
from erase.evaluate.base import Judge
from erase.evaluate.pictures.generation import (
    EvaluationPictures,
    draw_evaluation,
    judge_drawn,
    kernel_distances,
)
from erase.evaluate.pictures.judges import embedded_drawn
from erase.evaluate.pictures.report import REPORT_FILES, write_report
from erase.evaluate.reports import Cost, Report
from erase.evaluate.tables import measured_lines
from erase.models.opening import Model
from erase.prompts.seeds import EVALUATION_SEED
from erase.runs.opening import Measures, Opened, of_base, open_all
from erase.runs.state import carry_out
from erase.support.memory import peak_memory
from erase.tasks.diffusion.retained import retained_moved
from erase.tasks.diffusion.task import DiffusionTaskConfig

OUTPUT_FILES = (*FILES, *REPORT_FILES)


@dataclass(frozen=True)
class MeasureRun(Measures):
    """Which erasure is measured, and how.

    Args:
        erasure: its folder.
        model: the base, if it is not where the recipe says.
    """

    erasure: str
    model: str = ""


def measure(
    run: MeasureRun,
    model: Model | None = None,
    judge: Judge | None = None,
    oracle: Model | None = None,
) -> Report | None:
    """Draw and judge what the erasure's own run would have, and write that into its folder.

    Report, picture and card are written whole or not at all; the cost is that of measuring.
    `model`, `judge` and `oracle` may be open already. Processes share the work; the first alone
    returns the report. Raises ValueError on bad input, before any work.
    """
    started = time.perf_counter()
    erasure = Erasure.from_pretrained(run.erasure)
    run = of_base(run, erasure)

    def open_() -> Opened:
        asked, steps = erasure.facts.asked(), run.evaluation.steps
        task = DiffusionTaskConfig(size=erasure.facts.size)
        return open_all(run, asked, task, steps, model, judge, oracle)

    return carry_out(
        run.erasure, OUTPUT_FILES, open_,
        lambda opened: measured(run, opened, erasure, started), write_measured,
    )  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """An erasure and, where it was measured, what was drawn for that and the report."""

    erasure: Erasure
    drawn: Mapping[str, EvaluationPictures] = field(default_factory=dict)
    report: Report | None = None


def measured(run: Measures, opened: Opened, erasure: Erasure, started: float) -> Measured:
    """What the models draw and the judge sees; all processes take part."""
    drawn, judge = _draw_all(run, opened, erasure), opened.judge
    labels, deltas = opened.prompts.labels, erasure.deltas.values()
    seen = {name: embedded_drawn(judge, one.pictures) for name, one in drawn.items()}
    moved = retained_moved(opened.task, erasure.deltas)
    report = Report(
        request=erasure.recipe["request"],
        method=erasure.facts.method,
        protocol=_protocol(run, opened, erasure),
        metrics={n: judge_drawn(one, judge, labels, seen[n]) for n, one in drawn.items()},
        distances=kernel_distances(seen, drawn["base"].forget_count) if opened.oracle else {},
        cost=Cost(
            seconds=round(time.perf_counter() - started, 1),
            peak_memory_bytes=peak_memory(),
            artefact_bytes=erasure.nbytes,
            edited_parameters=sum(delta.count for delta in deltas),
        ),
        retained_moved=moved.concepts if moved else None,
        weights_moved=moved.weights if moved else None,
    )
    erasure.recipe["report"] = report.to_json() | {"table": measured_lines(report)}
    return Measured(erasure, drawn, report)


def write_measured(_: Opened, done: Measured, folder: Path) -> Report | None:
    """Write the erasure, and its report if there is one, into an existing folder."""
    done.erasure.write(folder)
    if done.report:
        write_report(done.report, done.drawn, folder, done.erasure.facts.layers)
    return done.report


def _draw_all(run: Measures, opened: Opened, erasure: Erasure) -> dict[str, EvaluationPictures]:
    """What base, erased model and oracle draw for the same prompts and seeds."""

    def drawn(model: Model, name: str) -> EvaluationPictures:
        said = f"judging the {name}"
        with model.drawing() as pipeline:
            return draw_evaluation(pipeline, opened.prompts, opened.sampling, run.evaluation, said)

    both = {"base": drawn(opened.model, "base")}
    with erasure.apply(opened.model.pipeline.components):
        both["erased"] = drawn(opened.model, "erased")
    return both | ({"oracle": drawn(opened.oracle, "oracle")} if opened.oracle else {})


def _protocol(run: Measures, opened: Opened, erasure: Erasure) -> dict[str, Any]:
    prompts, cut = opened.prompts, erasure.facts.truncation
    return {
        "model": run.model,
        **({"rank": cut.rank} if cut else {}),
        **opened.protocol,
        "prompts": f"{len(prompts.forget)} forget, {len(prompts.retain)} retain, sampled evenly",
        "seeds": f"one a picture from {EVALUATION_SEED}",
        "intervals": "95 % Wilson" + ("; of KID, a jackknife's" if opened.oracle else ""),
    }
