"""What a run will do and hold in memory, before it does it."""

from typing import Any

from torch import nn

from erase.evaluate.tables import markdown_table
from erase.methods import get_method
from erase.methods.concept_ablation import ConceptAblationConfig
from erase.methods.esd import ESDConfig
from erase.methods.salun import SalUnConfig, settings_for_teacher
from erase.methods.salun_lora import SalUnLoRAConfig
from erase.methods.salun_soft import SalUnSoftConfig
from erase.methods.scrub import ScrubConfig
from erase.models.opening import Model
from erase.prompts.request import PromptSet
from erase.runs.erase import RunConfig
from erase.tasks.diffusion.task import DiffusionTask
from erase.training.config import with_defaults

WEIGHT, GRADIENT, ADAMW, ORIGINAL, MASK = 4, 4, 8, 4, 1  # bytes a parameter, in float32


def plan(config: RunConfig, model: Model, prompts: PromptSet, task: DiffusionTask) -> str:
    """The plan of a run as Markdown: what changes, how long, and how much memory that takes.

    Memory is of tensors, without activations, the library's own and what drawing takes; in
    training SD1.5's UNet those add about 2 GB (benchmarks/README.md).
    """
    options = config.method_config or get_method(config.method).config()
    trained = _trained(options, task)
    rows = [
        ("family", task.family.name),
        *((name, _counted(module)) for name, module in task.components.items()),
        ("tensors that may change", f"{len(trained)}, {_millions(_size(trained))}"),
        ("prompts", f"{len(prompts.forget)} forget, {len(prompts.retain)} retain"),
    ]
    rows += _training_rows(options, task) if hasattr(options, "training") else []
    rows.append(("memory, activations apart", _gigabytes(_memory(options, model, task))))
    return markdown_table([(f"{config.method} on {config.model}", ""), *rows])


def _trained(options: Any, task: DiffusionTask) -> dict[str, nn.Parameter]:
    """What the method may change: closed forms and ESD's variants choose among all that may."""
    chosen = hasattr(options, "training") and not hasattr(options, "variant")
    return task.parameters() if chosen else task.editable()


def _training_rows(options: Any, task: DiffusionTask) -> list[tuple[str, str]]:
    known, training = task.finetuning, options.training
    if isinstance(options, (SalUnConfig, SalUnLoRAConfig, SalUnSoftConfig)):
        training = settings_for_teacher(training, task, options.teacher)
    training = with_defaults(training, known.learning_rate, known.steps)
    drawn = task.config.forget_pictures + task.config.retain_pictures
    rows = [
        ("pictures to draw first", f"{drawn} or more, of {task.sampling.steps} steps each"),
        ("training", f"{training.max_train_steps} steps, learning rate {training.learning_rate:g}"),
    ]
    if hasattr(options, "density") and hasattr(options, "mask_file"):
        count = _size(task.parameters())
        kept = int(count * options.density)
        rows.append(("mask", f"{kept} of {count} weights, {count / 8e6:.1f} MB as a file"))
    return rows


def _memory(options: Any, model: Model, task: DiffusionTask) -> int:
    """Bytes: the pipeline, and for training its gradients, optimizer and copies."""
    modules = [m for m in model.pipeline.components.values() if isinstance(m, nn.Module)]
    held = WEIGHT * sum(_size(dict(module.named_parameters())) for module in modules)
    if not hasattr(options, "training"):
        return held
    average = WEIGHT if options.training.use_ema else 0
    held += (GRADIENT + ADAMW + ORIGINAL + MASK + average) * _size(_trained(options, task))
    if _keeps_base(options):
        copied = (getattr(model.pipeline, name) for name in task.family.components)
        held += WEIGHT * sum(_size(dict(module.named_parameters())) for module in copied)
    return held


def _keeps_base(options: Any) -> bool:
    """Whether the method's teacher is a copy of the base."""
    taught = isinstance(options, (ConceptAblationConfig, ESDConfig, ScrubConfig))
    return taught or getattr(options, "teacher", "") == "frozen"


def _size(parameters: dict[str, nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters.values())


def _counted(module: nn.Module) -> str:
    return f"{type(module).__name__}, {_millions(_size(dict(module.named_parameters())))}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} million weights"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
