"""How much a denoiser's answer hangs on each position of what it reads of prompts."""

from dataclasses import replace

import torch
from torch import Tensor

from erase.core.precision import computed_in_float32
from erase.core.seeds import seeded
from erase.models.family import STATES
from erase.prompts.request import sample
from erase.support.progress import Bar
from erase.tasks.diffusion.task import DiffusionTask

AT_ONCE = 16


def hearing(task: DiffusionTask, count: int) -> dict[str, Tensor]:
    """By place, a weight for each position [p], on average 1; none where positions are not alike.

    It is the mean square, over `count` noises and prompts of both sets, of the derivative of the
    denoiser's answer along a random direction, by what is read at the position. Time steps are
    those of training, pictures noise alone.
    """
    if task.family.learned:
        return {}
    each = (count + 1) // 2
    sets = (task.prompts.forget, task.prompts.retain)
    texts = [prompt.text for prompts in sets for prompt in sample(prompts, each, task.seed)[:each]]
    generator, total = seeded(task.seed), torch.zeros(())
    wide = computed_in_float32(task.denoiser.reading.values())  # as what closed forms read
    with wide, Bar(total=len(texts), desc="hearing", unit="prompt") as bar:
        for start in range(0, len(texts), AT_ONCE):
            chunk = texts[start : start + AT_ONCE]
            total = total + _squares(task, chunk, generator)
            bar.update(len(chunk))
    return {STATES: total / total.mean()}


@torch.enable_grad()
def _squares(task: DiffusionTask, texts: list[str], generator: torch.Generator) -> Tensor:
    """The squared derivatives by each position [p], summed over prompts and numbers, in float64."""
    denoiser = task.denoiser
    pipeline, condition = denoiser.pipeline, task.condition(texts)
    side = denoiser.side // pipeline.vae_scale_factor
    latents = torch.zeros(len(texts), pipeline.vae.config.latent_channels, side, side)
    batch = denoiser.noised(latents.to(denoiser.device), texts, generator)
    states = condition.states.detach().requires_grad_()
    answer = denoiser.predict(batch.noise, batch.timesteps, replace(condition, states=states))
    along = torch.randn(answer.shape, generator=generator).to(answer)
    (slope,) = torch.autograd.grad((answer * along).sum(), states)
    return slope.cpu().double().square().sum((0, 2))
