"""Words that forget prompts alone hold, replaced by the mean word of their text encoders."""

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from erase.core.precision import widened
from erase.models.text_encoders import speller_of
from erase.tasks.diffusion.task import DiffusionTask


def spelt_tables(task: DiffusionTask) -> dict[str, tuple[nn.Parameter, PreTrainedTokenizerBase]]:
    """By text encoder its table of words, if that may change, and what spells for it.

    Raises ValueError where that is not known.
    """
    may_change, found = {id(weight) for weight in task.editable().values()}, {}
    pipeline, denoisers = task.denoiser.pipeline, (task.family.denoiser, *task.family.others)
    for name in (part for part in task.components if part not in denoisers):
        table = getattr(pipeline, name).get_input_embeddings().weight
        if id(table) not in may_change:
            continue
        if (speller := speller_of(pipeline, name)) is None:
            raise ValueError(
                f"What spells for {name} is not known, so that its words can't be told apart; "
                "take --harden.words keep, or leave it out of the components."
            )
        found[name] = table, speller
    return found


@torch.no_grad()
def blank_words_(task: DiffusionTask) -> dict[str, list[str]]:
    """Put the mean word in the place of words that forget prompts alone hold; these, by encoder."""
    blanked = {}
    for name, (table, tokenizer) in spelt_tables(task).items():
        kept = {prompt.text for prompt in task.prompts.retain} | {""}
        kept |= {prompt.anchor for prompt in task.prompts.forget}
        forgotten, known = (
            {number for ids in tokenizer(sorted(texts)).input_ids for number in ids}
            for texts in ({prompt.text for prompt in task.prompts.forget}, kept)
        )
        own = sorted(forgotten - known)
        mean = widened(table).mean(0).to(table.dtype)
        table.index_copy_(
            0, torch.tensor(own, dtype=torch.int64).to(table.device), mean.expand(len(own), -1)
        )
        blanked[name] = tokenizer.convert_ids_to_tokens(own)
    return blanked
