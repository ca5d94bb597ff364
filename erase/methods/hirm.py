"""HiRM: the first layer of a CLIP text encoder learns to misdirect what its last layer says."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from erase.core.names import named_parameters
from erase.core.seeds import seeded
from erase.erasure.erasure import Erasure
from erase.methods import Needs, register, usual_training
from erase.prompts.request import Prompt, sample
from erase.support.config import NotNegative, Positive
from erase.tasks.diffusion.task import DiffusionTask
from erase.training.config import TrainedConfig, TrainingConfig
from erase.training.loop import finetune

MOST_RETAINED = 256


@dataclass(frozen=True)
class HiRMConfig(TrainedConfig):
    """Where the last layer's words are led, and what holds the others.

    Args:
        target: "anchor" leads to what the base says of the anchor's prompt (HiRM-S, with a
            super-category for anchor), "random" to one random direction (HiRM-R).
        length: of the random direction; the base's own on average if 0.
        retain_weight: weight of what is said of retained prompts staying as it was; HiRM has none.
        batch: prompts of either set in a step.
    """

    target: Literal["anchor", "random"] = "anchor"
    length: NotNegative[float] = 0.0
    retain_weight: NotNegative[float] = 0.1
    batch: Positive[int] = 32
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(200, 3e-3), kw_only=True
    )


@dataclass(frozen=True)
class Said:
    """Prompts, and by encoder what its last attention is to say of them [n, tokens, width]."""

    texts: Sequence[str]
    wanted: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self, places: Tensor) -> Self:
        """Those at these places [n]."""
        wanted = {name: states[places.to(states.device)] for name, states in self.wanted.items()}
        return type(self)([self.texts[place] for place in places.tolist()], wanted)

    def shard(self, rank: int, world: int) -> Self:
        """Every `world`-th, from `rank` on."""
        return self.rows(torch.arange(rank, len(self), world))


class SpokenTask:
    """A task whose batches are prompts, so that nothing is drawn; else it is the one it wraps."""

    def __init__(self, task: DiffusionTask, forget: Said, retain: Said, batch: int):
        self._task, self._sets, self._batch = task, (forget, retain), batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def prepare(self) -> None:
        """Nothing is left to make."""

    def forget_batches(self, step_seed: int) -> Iterator[Said]:
        """One shuffled pass through the forget prompts."""
        return self._batches(self._sets[0], step_seed)

    def retain_batches(self, step_seed: int) -> Iterator[Said]:
        """One shuffled pass through the retained prompts."""
        return self._batches(self._sets[1], step_seed)

    def _batches(self, said: Said, step_seed: int) -> Iterator[Said]:
        order = torch.randperm(len(said), generator=seeded(step_seed))
        return map(said.rows, order.split(self._batch))


def _needs(task: DiffusionTask, config: HiRMConfig) -> Needs:
    return Needs(first_layers(task), usual_training(task, config))


@register("hirm", HiRMConfig, DiffusionTask, _needs)
def hirm(task: DiffusionTask, config: HiRMConfig) -> Erasure:
    """High-level representation misdirection (HiRM, ICLR 2026; arXiv 2602.19631).

    The attention and MLP of the first layer of each CLIP text encoder that may change are trained
    so that what the last layer's attention says, the output of its `out_proj`, comes to be c r: r a
    random unit vector over all tokens (HiRM-R), or what the base says of a super-category, with a c
    of 1 (HiRM-S). One erased encoder serves every pipeline that has it.

    Theirs trains on the bare name for 15 to 50 steps of AdamW at 5e-5 with a c of 500 and no retain
    set; ours on the templates' prompts, towards the request's anchor, and holds what is said of the
    retained, without which so small an encoder as the bundled one forgets them. The mean is over
    all numbers where theirs is a squared norm. That is by a transcription of the paper: their code
    was not at hand, so there is no preset published.
    """
    chosen = first_layers(task)
    forget = sample(task.prompts.forget, len(task.prompts.forget), task.seed)
    kept = sample(task.prompts.retain, min(MOST_RETAINED, len(task.prompts.retain)), task.seed)
    spoken = SpokenTask(task, _misled(task, forget, config), _as_said(task, kept), config.batch)

    def step_loss(forget: Said, retain: Said, progress: float) -> Tensor:
        loss = _distance(task, forget)
        if config.retain_weight:
            loss = loss + config.retain_weight * _distance(task, retain)
        return loss

    trained: Any = spoken
    # Its loss runs the encoders by themselves, which shards would not hear of.
    return Erasure(finetune(trained, step_loss, config.training, parameters=chosen, replicas=True))


def first_layers(task: DiffusionTask) -> dict[str, nn.Parameter]:
    """The attention and MLP of every encoder's first layer; ValueError if none may change."""
    editable, chosen = task.editable(), dict[str, nn.Parameter]()
    for name, layers in _layers(task).items():
        parts = {part: getattr(layers[0], part) for part in ("self_attn", "mlp")}
        own = {id(parameter) for part in parts.values() for parameter in part.parameters()}
        mine = named_parameters({name: task.components[name]})
        chosen |= {n: editable[n] for n, p in mine.items() if id(p) in own and n in editable}
    if not chosen:
        raise ValueError(f"The method hirm trains the first layer of text_encoder, and of "
                         f"{', '.join(task.components)} none may change that is one; choose "
                         "another method, or other components.")  # fmt: skip
    return chosen


def _layers(task: DiffusionTask) -> dict[str, nn.ModuleList]:
    """The layers of the text encoders among the task's components."""
    found = {}
    for name in task.family.encoders:
        for module in task.components[name].modules() if name in task.components else ():
            if isinstance(module, nn.ModuleList) and hasattr(module[0], "self_attn"):
                found[name] = module
    return found


@contextmanager
def _heard(task: DiffusionTask) -> Iterator[dict[str, Tensor]]:
    """While in force, what each encoder's last attention says is written down by its name."""
    said: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name, layers in _layers(task).items():

            def note(module: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
                said[name] = output

            last = layers[-1].get_submodule("self_attn.out_proj")
            hooks.callback(last.register_forward_hook(note).remove)
        yield said


def said_of(task: DiffusionTask, texts: Sequence[str]) -> dict[str, Tensor]:
    """By encoder what its last attention says of the texts [n, tokens, width]."""
    with _heard(task) as said:
        task.condition(texts)
    return dict(said)


@torch.no_grad()
def _as_said(task: DiffusionTask, prompts: Sequence[Prompt]) -> Said:
    texts = [prompt.text for prompt in prompts]
    return Said(texts, said_of(task, texts))


@torch.no_grad()
def _misled(task: DiffusionTask, prompts: Sequence[Prompt], config: HiRMConfig) -> Said:
    """The forget prompts, and what is to be said of them."""
    texts, anchors = [p.text for p in prompts], [p.anchor for p in prompts]
    wanted = said_of(task, anchors if config.target == "anchor" else texts)
    if config.target == "random":
        for name, states in wanted.items():
            direction = torch.randn(states.shape[1:], generator=seeded(task.seed)).to(states)
            length = config.length or float(states.float().flatten(1).norm(dim=1).mean())
            wanted[name] = (length * direction / direction.norm()).expand_as(states)
    return Said(texts, wanted)


def _distance(task: DiffusionTask, said: Said) -> Tensor:
    """The mean square of what is said differently, summed over encoders."""
    found = said_of(task, said.texts)
    squares = [(found[name].float() - wanted.float()).square().mean()
               for name, wanted in said.wanted.items()]  # fmt: skip
    return torch.stack(squares).sum()
