"""State inversion: learn what the denoiser would have to read for the concept to come back."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from erase.attacks import register
from erase.attacks.base import Outcome, Target
from erase.attacks.tokens import room_for
from erase.core.activations import hooked
from erase.core.precision import widened
from erase.core.seeds import seeded
from erase.models.family import Condition, Family
from erase.models.tokens import last_positions
from erase.support.config import Config, Positive
from erase.support.distributed import of_first
from erase.support.progress import Bar
from erase.tasks.diffusion.heard_states import states_of
from erase.tasks.diffusion.learned import LearnedDenoiser
from erase.tasks.diffusion.noising import DiffusionBatch

WORD, STATES = "thing", "encoder_hidden_states"
NEAR = 0.1  # of its length: states of one text that other batches round otherwise


@dataclass(frozen=True)
class StateInversionConfig(Config):
    """Inversion behind the text encoders.

    Args:
        vectors: how many words' states are learnt.
        steps: optimizer steps.
        batch_size: pictures of a step.
        learning_rate: AdamW's, in standard deviations of the states.
    """

    vectors: Positive[int] = 1
    steps: Positive[int] = 100
    batch_size: Positive[int] = 4
    learning_rate: Positive[float] = 0.05


def _hindrance(family: Family) -> str:
    wordless = family.learned and not family.learned.denoisers[0].states
    return "it reads no word as a state of its own" if wordless else ""


@register("state_inversion", StateInversionConfig, _hindrance, room_for("vectors"))
def state_inversion(target: Target, config: StateInversionConfig) -> Outcome:
    """Concept inversion in the states that the denoiser reads (Pham et al., 2024, of words).

    The states of the last `vectors` words of "a thing ..." are learnt from pictures of the concept,
    and no text encoder is asked for more, whether it may change or not. What reads whole prompts,
    such as SDXL's summary, reads "a thing ..." as it stands.
    """
    if isinstance(target.denoiser, LearnedDenoiser):
        return _by_heard_states(target, config, target.denoiser)
    text = f"a {' '.join([WORD] * config.vectors)}"
    places, plain = _plain(target, text, config.vectors)
    learnt = of_first(_learnt(target, config, text, places, plain).cpu()).to(places.device)
    module = getattr(target.pipeline, target.denoiser.family.denoiser)
    with read_instead(module, places, plain.states[0, places], learnt), torch.no_grad():
        pictures = target.drawn([text] * len(target.prompts), "state inversion")
    passes = config.steps * config.batch_size + target.drawing_passes
    return target.outcome(pictures, passes)


def _by_heard_states(
    target: Target, config: StateInversionConfig, denoiser: LearnedDenoiser
) -> Outcome:
    """The same where the words' states must be heard, in every argument that has some."""
    text, states = states_of(denoiser, config.vectors)
    units = {name: rows.std() for name, rows in states.rows.items()}
    shifts = {n: torch.zeros_like(rows, requires_grad=True) for n, rows in states.rows.items()}

    def now() -> dict[str, Tensor]:
        return {n: rows + units[n] * shifts[n] for n, rows in states.rows.items()}

    def predicted(batch: DiffusionBatch) -> Tensor:
        noisy, text = denoiser.noising.noisy(batch), states.read_as(now(), len(batch))
        return denoiser.predict(noisy, batch.timesteps, text)

    _descend(target, config, text, [*shifts.values()], predicted)
    learnt = {n: of_first(rows.detach().cpu()).to(rows.device) for n, rows in now().items()}
    with states.put(denoiser, learnt), torch.no_grad():
        pictures = target.drawn([text] * len(target.prompts), "state inversion")
    passes = config.steps * config.batch_size + target.drawing_passes
    return target.outcome(pictures, passes)


@torch.no_grad()
def _plain(target: Target, text: str, count: int) -> tuple[Tensor, Condition]:
    """The places of the text's last words in each tokenizer's part, and what is read of it."""
    denoiser = target.denoiser
    last = last_positions(target.pipeline, denoiser.family.readers, [text])[0]
    places = torch.cat([last - i for i in range(count)])
    return places.to(denoiser.device), denoiser.condition([text])


def _learnt(
    target: Target, config: StateInversionConfig, text: str, places: Tensor, plain: Condition
) -> Tensor:
    """What to read at these places [k, width], for the concept's pictures to be denoised."""
    denoiser = target.denoiser
    own, unit = widened(plain.states[0, places]), widened(plain.states).std()
    shift = torch.zeros_like(own, requires_grad=True)

    def predicted(batch: DiffusionBatch) -> Tensor:
        now = (own + unit * shift).to(plain.states.dtype)
        read = replace(plain, states=plain.states.index_copy(1, places, now[None]))
        return denoiser.denoise(batch, read.rows(torch.zeros(len(batch), dtype=torch.long)))

    _descend(target, config, text, [shift], predicted)
    return (own + unit * shift).detach()


def _descend(
    target: Target,
    config: StateInversionConfig,
    text: str,
    shifts: list[Tensor],
    predicted: Callable[[DiffusionBatch], Tensor],
) -> None:
    """Change the shifts until the model's own loss on the concept's pictures is low."""
    denoiser, generator = target.denoiser, seeded(target.seed)
    optimizer = torch.optim.AdamW(shifts, config.learning_rate, weight_decay=0.0)
    with target.training_only({}):
        for _ in Bar(range(config.steps), desc="state inversion", unit="step"):
            rows = torch.randint(len(target.latents), (config.batch_size,), generator=generator)
            batch = denoiser.noised(target.latents[rows], [text] * len(rows), generator)
            found = predicted(batch)
            optimizer.zero_grad()
            F.mse_loss(found, denoiser.noising.target(batch)).backward()
            optimizer.step()


@contextmanager
def read_instead(module: nn.Module, places: Tensor, own: Tensor, learnt: Tensor) -> Iterator[None]:
    """While in force, a pipeline's denoiser that is given `own` [k, width] there reads `learnt`.

    Other prompts in the batch, such as guidance's empty one, are read as they are.
    """

    def given(
        _: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        states = named[STATES]
        away = widened(states[:, places] - own).flatten(1).norm(dim=1)
        changed = states.index_copy(1, places, learnt.to(states).expand(len(states), -1, -1))
        mine = (away < NEAR * own.norm())[:, None, None]
        return inputs, {**named, STATES: torch.where(mine, changed, states)}

    with hooked([module.register_forward_pre_hook(given, with_kwargs=True)]):
        yield
