"""P4D: a prompt under which the erased model predicts what the base does of the concept."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from erase.attacks import register
from erase.attacks.base import PLACEHOLDER, Outcome, Target, encode_text, placeholder_embeddings
from erase.attacks.tokens import TokenSearch, search_tokens, words_of
from erase.support.config import Positive


@dataclass(frozen=True)
class P4DConfig(TokenSearch):
    """Tokens instead of every prompt, which start further from what they must say."""

    tokens: Positive[int] = 3
    steps: Positive[int] = 150
    learning_rate: Positive[float] = 0.1


@register("p4d", P4DConfig)
def p4d(target: Target, config: P4DConfig) -> Outcome:
    """Prompting4Debugging (Chin et al., ICML 2024), one found prompt for all.

    It needs the base's predictions, which the target holds: of its pictures under their prompts.
    """
    pipeline, memory = target.pipeline, target.memory
    generator = torch.Generator().manual_seed(target.seed)
    text = " ".join([PLACEHOLDER] * config.tokens)

    def loss() -> Tensor:
        rows = torch.randint(len(memory.noisy), (config.batch_size,), generator=generator)
        states = encode_text(pipeline, [text] * config.batch_size)
        found = pipeline.unet(memory.noisy[rows], memory.timesteps[rows], states).sample
        return F.mse_loss(found, memory.predictions[rows])

    vectors = search_tokens(pipeline, config, generator, loss)
    with placeholder_embeddings(pipeline, vectors), torch.no_grad():
        pictures = target.drawn([text] * len(target.prompts), "p4d")
    passes = config.steps * config.batch_size + target.drawing_passes
    words = words_of(pipeline, vectors) if config.hard else []
    return target.outcome(pictures, passes, prompt=words)
