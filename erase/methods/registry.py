"""The registry of erasure methods: a name, a config and a function from a task to an Erasure."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from erase.core.names import find_weight
from erase.core.process import own_settings
from erase.erasure.erasure import Erasure
from erase.erasure.recipe import base_facts
from erase.models.learned import training_risk
from erase.support.config import Config
from erase.support.registry import Registry
from erase.tasks.base import Task, TrainedTask
from erase.training.config import TrainedConfig, TrainingConfig, with_defaults
from erase.training.keeping import require_keeps
from erase.training.watch import require_runnable

logger = logging.getLogger(__name__)
MethodFunction = Callable[[Any, Any], Erasure]  # of its kind of task, and its config


@dataclass(frozen=True)
class Needs:
    """What a method trains and holds beside the model, as a plan tells before it is run.

    trained: the tensors it may change, by canonical name. training: the optimizer's settings with
    nothing left open; None for closed forms. copies_of_base: whole copies of the model. teachers:
    copies of the trained tensors alone, as they were. extra_per_weight: bytes for each trained
    weight, beside its gradient, its original and the optimizer's. kept: how many of the weights its
    mask lets change; None without a mask.
    """

    trained: Mapping[str, nn.Parameter]
    training: TrainingConfig | None = None
    copies_of_base: int = 0
    teachers: int = 0
    extra_per_weight: int = 0
    kept: int | None = None


NeedsFunction = Callable[[Any, Any], Needs]
TextAlone = Callable[[Any], bool]  # of its config


def usual_training(task: TrainedTask, config: TrainedConfig) -> TrainingConfig:
    """The optimizer's settings, the task's own where they are left open."""
    return with_defaults(config.training, task.finetuning.learning_rate, task.finetuning.steps)


def holding(copies_of_base: int = 0, teachers: int = 0, extra_per_weight: int = 0) -> NeedsFunction:
    """The needs of a method that trains what the task trains; a closed form edits any weight."""

    def needs(task: TrainedTask, config: Config) -> Needs:
        held = copies_of_base, teachers, extra_per_weight
        if isinstance(config, TrainedConfig):
            return Needs(task.parameters(), usual_training(task, config), *held)
        return Needs(task.editable(), None, *held)

    return needs


@dataclass(frozen=True)
class Method:
    """One registered method; its config's fields are its CLI flags and YAML keys.

    task: the kind of task it needs, `object` if the protocols of tasks/base.py are enough. needs:
    what it will train and hold, of a task and a config. published: the settings of its authors'
    code, where the defaults are others. text_alone: whether, so configured, it asks for nothing but
    text encoders and the weights through which text enters the denoiser.
    """

    name: str
    config: type[Config]
    function: MethodFunction
    task: type
    needs: NeedsFunction
    published: Config | None = None
    text_alone: TextAlone = lambda config: False

    @own_settings()
    def __call__(self, task: Task, config: Config | None = None) -> Erasure:
        """Run on a task, by default with default settings; the Erasure with its recipe.

        Raises ValueError for a task of another kind.
        """
        self.require_serves(type(task))
        for module in task.components.values():
            if any(parameter.is_inference() for parameter in module.parameters()):
                raise ValueError("The model was made under torch.inference_mode, so nothing of it "
                                 "can be trained; open it outside.")  # fmt: skip
        config = config or self.config()
        trains = isinstance(config, TrainedConfig)
        trained = self.needs(task, config).trained if trains else {}
        require_keeps(task, self.name, config, trained)
        if isinstance(config, TrainedConfig):
            require_runnable(config.training, type(task))
            if risk := training_risk(task.architecture(), [*trained]):
                logger.warning(risk)
        erasure = self.function(task, config)
        weights = {name: find_weight(task.components, name) for name in erasure.deltas}
        erasure.recipe |= {
            "base": {
                **base_facts(weights),
                **task.architecture(),
            },
            "method": self.name,
            "config": asdict(config),
            "task": task.describe(),
        }
        return erasure

    def require_serves(self, kind: type) -> None:
        """ValueError unless the method serves this kind of task; runs ask before they open any."""
        if not issubclass(kind, self.task):
            raise ValueError(
                f"The method {self.name} needs a {self.task.__name__}, not a "
                f"{kind.__name__}; choose another method."
            )


def preset_of(name: str, preset: str) -> Config:
    """The config that a method's preset stands for; ValueError if the method has none."""
    method = get_method(name)
    if preset == "ours":
        return method.config()
    if method.published is None:
        known = ", ".join(other for other, method in METHODS.all().items() if method.published)
        raise ValueError(
            f"The method {name} has no preset published; leave it out, or choose one of {known}."
        )
    return method.published


METHODS: Registry[Method] = Registry("method", "erase.methods", own="erase.methods")
JUST_THE_MODEL = holding()


def register(
    name: str,
    config: type[Config],
    task: type = object,
    needs: NeedsFunction = JUST_THE_MODEL,
    published: Config | None = None,
    text_alone: TextAlone = lambda config: False,
) -> Callable[[MethodFunction], MethodFunction]:
    """Make a function `(task, config) -> Erasure` available under `name`.

    Raises ValueError if another method has that name.
    """
    rest = task, needs, published, text_alone
    return METHODS.adding(name, made=lambda function: Method(name, config, function, *rest))


def serving(kind: type) -> list[str]:
    """The names of the methods that serve a kind of task."""
    return [name for name, method in METHODS.all().items() if issubclass(kind, method.task)]


def get_method(name: str) -> Method:
    """The method called `name`; ValueError, listing all, if there is none."""
    return METHODS.get(name)
