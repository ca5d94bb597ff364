"""What a run will do and hold in memory, before it does it."""

from collections.abc import Mapping

from torch import nn

from erase.core.precision import is_half
from erase.evaluate.tables import markdown_table
from erase.methods import Needs, get_method
from erase.models.opening import Model
from erase.runs.erase import RunConfig
from erase.tasks.diffusion.task import DiffusionTask
from erase.training.config import TrainingConfig

WEIGHT, GRADIENT = 4, 4  # bytes a parameter, in float32
MOMENTS = {"adamw": 8, "sgd": 4}


def plan(config: RunConfig, model: Model, task: DiffusionTask) -> str:
    """The plan of a run as Markdown: what changes, how long, and how much memory that takes.

    Memory is of tensors, without activations, the library's own and what drawing takes; in
    training SD1.5's UNet those add about 2 GB (benchmarks/README.md).
    """
    method = get_method(config.method)
    needs = method.needs(task, config.method_config or method.config())
    prompts = task.prompts
    weights = _millions(_size(needs.trained))
    rows = [
        ("family", task.family.name),
        *((name, _counted(module)) for name, module in task.components.items()),
        ("tensors that may change", f"{len(needs.trained)}, {weights}"),
        ("prompts", f"{len(prompts.forget)} forget, {len(prompts.retain)} retain"),
        *_training_rows(needs, task),
        ("memory, activations apart", f"{_memory(needs, model, task) / 1e9:.2f} GB"),
    ]
    return markdown_table([(f"{config.method} on {config.model}", ""), *rows])


def _training_rows(needs: Needs, task: DiffusionTask) -> list[tuple[str, str]]:
    training, drawn = needs.training, task.config.forget_pictures + task.config.retain_pictures
    if training is None:
        return []
    rows = [
        ("pictures to draw first", f"{drawn} or more, of {task.sampling.steps} steps each"),
        ("training", f"{training.max_train_steps} steps, learning rate {training.learning_rate:g}"),
    ]
    if needs.kept is not None:
        count = _size(needs.trained)
        rows.append(("mask", f"{needs.kept} of {count} weights, {count / 8e6:.1f} MB as a file"))
    return rows


def _memory(needs: Needs, model: Model, task: DiffusionTask) -> int:
    """Bytes: the pipeline, its copies, and for training master weights, gradients and optimizer."""
    modules = [m for m in model.pipeline.components.values() if isinstance(m, nn.Module)]
    copied = [getattr(model.pipeline, name) for name in task.family.components]
    held = sum(_bytes(dict(m.named_parameters())) for m in modules)
    held += needs.copies_of_base * sum(_bytes(dict(m.named_parameters())) for m in copied)
    held += needs.extra_per_weight * _size(needs.trained)
    if needs.training:
        held += _training_memory(needs, needs.training)
    copied_once = needs.training or needs.teachers  # a teacher shares what training puts back
    return held + _bytes(needs.trained) * bool(copied_once)


def _training_memory(needs: Needs, training: TrainingConfig) -> int:
    """Bytes of gradients, the optimizer's state, and copies of what is stored in half precision."""
    count = _size(needs.trained)
    each = GRADIENT + MOMENTS[training.optimizer] + (WEIGHT if training.use_ema else 0)
    halves = _size({name: p for name, p in needs.trained.items() if is_half(p)})
    if needs.kept is not None:  # copies hold what the mask keeps alone
        halves = halves * needs.kept // count
        count = halves or count
    return each * count + WEIGHT * halves


def _bytes(parameters: Mapping[str, nn.Parameter]) -> int:
    return sum(parameter.nbytes for parameter in parameters.values())


def _size(parameters: Mapping[str, nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters.values())


def _counted(module: nn.Module) -> str:
    return f"{type(module).__name__}, {_millions(_size(dict(module.named_parameters())))}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} million weights"
