"""One call from a request to a measured Erasure in a folder."""

import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from diffusers import DiffusionPipeline

from erase.erasure.erasure import FILES, Erasure
from erase.evaluate.pictures.clip import ClipJudge
from erase.evaluate.pictures.generation import (
    FIRST_SEED,
    EvaluationConfig,
    EvaluationPictures,
    draw_evaluation,
    judge_drawn,
    kernel_distances,
)
from erase.evaluate.pictures.report import FILES as REPORT_FILES
from erase.evaluate.pictures.report import build_report, write_report
from erase.evaluate.tables import measured_lines
from erase.methods import get_method
from erase.models.opening import Model, default_judge, load_model
from erase.prompts.catalogue import Catalogue, Sampling
from erase.prompts.request import EraseRequest, PromptSet, expand
from erase.runs.state import (
    cleared_if_broken,
    refuse_another_run,
    run_digest,
    state_folder,
    versions,
    with_checkpoints,
)
from erase.support.distributed import own_device
from erase.support.files import check_writable, replaced_folder
from erase.tasks.diffusion.task import DiffusionTask, DiffusionTaskConfig

OUTPUT_FILES = (*FILES, *REPORT_FILES)


@dataclass(frozen=True)
class RunConfig:
    """Everything one run depends on; equal configs give equal artefacts.

    model: "emoji", a pipeline folder or a hub id. judge: an open_clip name or `local-dir:FOLDER`;
    by default the bundled judge, for models with a catalogue. oracle: a pipeline trained without
    the concept, to measure beside base and erased. method_config: the dataclass that `method`
    registered, its defaults if None.
    """

    request: EraseRequest
    model: str = "emoji"
    method: str = "salun"
    method_config: Any = None
    task: DiffusionTaskConfig = field(default_factory=DiffusionTaskConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    judge: str = ""
    oracle: str = ""
    device: str = "cpu"

    def __post_init__(self) -> None:
        counts = self.evaluation.forget_pictures, self.evaluation.retain_pictures
        if self.oracle and min(counts) < 3:
            raise ValueError(f"The distance to an oracle needs 3 pictures of a set, not "
                             f"{min(counts)}; draw more.")  # fmt: skip


def run(
    config: RunConfig,
    output: str | Path,
    model: Model | None = None,
    judge: ClipJudge | None = None,
    erased: Callable[[Erasure], None] = lambda erasure: None,
    oracle: Model | None = None,
) -> dict[str, Any]:
    """Erase, measure and write `output`: artefact, card, report.json, report.md and grid.png.

    Training state lies beside `output` until the run is whole, so that an interrupted run goes on
    where it stopped. Of several processes the first measures and writes; it returns the report, the
    others an empty one. `model`, `judge` and `oracle` may be open already; `erased` is told of the
    erasure before it is measured. Raises ValueError on bad input, before any work.
    """
    started = time.perf_counter()
    output = Path(output).resolve()
    method = get_method(config.method)
    check_writable(output, OUTPUT_FILES)
    model, prompts, task = prepared(config, model)
    if oracle is None and config.oracle:
        oracle = load_model(config.oracle, own_device(config.device))
    judge = judge or judge_of(config.judge, model)
    options = config.method_config or method.config()
    digest = run_digest(config, task)
    refuse_another_run(output, digest)
    state = state_folder(options, output, digest)
    with cleared_if_broken(state):
        erasure = method(task, with_checkpoints(options, state))
    if not Accelerator().is_main_process:
        return {}
    erasure.recipe |= _recipe(config, options, erasure, digest)
    erased(erasure)
    drawn = _draw_all(config, model, oracle, prompts, erasure)
    report = build_report(
        request=asdict(config.request),
        method=config.method,
        protocol=_protocol(config, model, oracle, prompts, judge),
        judged={name: judge_drawn(one, judge, prompts.labels) for name, one in drawn.items()},
        distances=kernel_distances(drawn, judge) if oracle else None,
        cost=_cost(erasure, time.perf_counter() - started),
    )
    erasure.recipe["report"] = report | {"table": measured_lines(report)}
    with replaced_folder(output, OUTPUT_FILES) as partial:
        erasure.write(partial)
        layers = erasure.recipe.get("mask", {}).get("layers")
        write_report(report, drawn, partial, layers)
    shutil.rmtree(state, ignore_errors=True)
    return report


def prepared(
    config: RunConfig, model: Model | None = None
) -> tuple[Model, PromptSet, DiffusionTask]:
    """The model, the prompts of the request, and the task of both; ValueError on bad input."""
    model = model or load_model(config.model, own_device(config.device))
    prompts = expand(config.request, model.catalogue)
    task = DiffusionTask(
        model.pipeline, prompts, model.sampling, config.task, config.request.seed,
        finetuning=model.finetuning(prompts),
    )  # fmt: skip
    return model, prompts, task


def _draw_all(
    config: RunConfig, model: Model, oracle: Model | None, prompts: PromptSet, erasure: Erasure
) -> dict[str, EvaluationPictures]:
    """What base, erased model and oracle draw for the same prompts and seeds."""

    def drawn(pipeline: DiffusionPipeline, name: str) -> EvaluationPictures:
        sampling = _evaluation_sampling(config, model)
        return draw_evaluation(
            pipeline, prompts, sampling, config.evaluation, f"judging the {name}"
        )

    both = {"base": drawn(model.pipeline, "base")}
    with erasure.apply(model.pipeline.components):
        both["erased"] = drawn(model.pipeline, "erased")
    return both | ({"oracle": drawn(oracle.pipeline, "oracle")} if oracle else {})


def _evaluation_sampling(config: RunConfig, model: Model) -> Sampling:
    known = model.sampling
    steps, size = config.evaluation.steps or known.steps, config.task.size or known.size
    return replace(known, steps=steps, size=size)


def judge_of(name: str, model: Model) -> ClipJudge:
    """The judge of this name, or the model's own; ValueError if it has none."""
    name = name or default_judge(model)
    if name is None:
        raise ValueError(
            "There is no judge for this model; name one, e.g. --judge ViT-B-32/openai."
        )
    return ClipJudge(name, judge_templates(model.catalogue))


def judge_templates(catalogue: Catalogue | None) -> dict[str, list[str]]:
    """Captions to average a label over: every style for objects, every object for styles."""
    if catalogue is None:
        return {}
    return {
        "object": [catalogue.prompt("{}", style) for style in catalogue.styles],
        "style": [catalogue.prompt(object_, "{}") for object_ in catalogue.objects],
    }


def _recipe(config: RunConfig, options: Any, erasure: Erasure, digest: str) -> dict[str, Any]:
    return {
        "run": digest,
        "base": erasure.recipe["base"] | {"model": config.model},
        "request": asdict(config.request),
        "config": asdict(options),
        "versions": versions(),
    }


def _protocol(
    config: RunConfig, model: Model, oracle: Model | None, prompts: PromptSet, judge: ClipJudge
) -> dict[str, Any]:
    sampling = _evaluation_sampling(config, model)
    return {
        "model": config.model,
        **({"oracle": oracle.name} if oracle else {}),
        "judge": f"{Path(judge.name).name} {judge.fingerprint}",
        "labels": {kind: len(names) for kind, names in prompts.labels.items()},
        "scheduler": type(model.pipeline.scheduler).__name__,
        "steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
        **({"size": sampling.size} if sampling.size else {}),
        "prompts": f"{len(prompts.forget)} forget, {len(prompts.retain)} retain, sampled evenly",
        "seeds": f"one a picture from {FIRST_SEED}",
        "intervals": "95 % Wilson",
    }


def _cost(erasure: Erasure, seconds: float) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 1),
        "peak_memory_bytes": _peak_memory(),
        "artefact_bytes": erasure.nbytes,
        "edited_parameters": sum(delta.count for delta in erasure.deltas.values()),
    }


def _peak_memory() -> int:
    """This process' highest resident memory so far, in bytes."""
    if platform.system() == "Windows":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    # Linux counts kilobytes, macOS bytes.
    unit = 1 if platform.system() == "Darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
