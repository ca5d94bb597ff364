"""Words without a spelling: vectors that text encoders read in place of some of a prompt's."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from erase.core.activations import hooked
from erase.core.precision import widened
from erase.core.shards import full_tensor
from erase.models.text_encoders import speller_of
from erase.tasks.diffusion.denoiser import PLACEHOLDER, ConditionedDenoiser

Vectors = Mapping[str, Tensor]  # of words, by text encoder: [k, width]


def placeholders(count: int) -> str:
    """The text of `count` words that are to be found."""
    return " ".join([PLACEHOLDER] * count)


def tokenizer_of(denoiser: ConditionedDenoiser) -> PreTrainedTokenizerBase:
    """What spells for the first of the text encoders in which words can be searched."""
    return speller_of(denoiser.pipeline, next(iter(denoiser.word_encoders)))


def vocabularies(denoiser: ConditionedDenoiser) -> Vectors:
    """The vectors [tokens, width] of all words in every text encoder, in float32 at least."""
    tables = {n: encoder.get_input_embeddings() for n, encoder in denoiser.word_encoders.items()}
    return {name: widened(full_tensor(table.weight.detach())) for name, table in tables.items()}


def embeddings_as(
    denoiser: ConditionedDenoiser, hooks: Mapping[str, Callable[..., Tensor]]
) -> AbstractContextManager[None]:
    """While in force, these hooks say what each of their text encoders reads words as."""
    tables = {name: denoiser.word_encoders[name].get_input_embeddings() for name in hooks}
    return hooked(tables[name].register_forward_hook(hook) for name, hook in hooks.items())


def placeholder_embeddings(
    denoiser: ConditionedDenoiser, vectors: Vectors
) -> AbstractContextManager[None]:
    """While in force, the k placeholders of every text read as these vectors in their encoders.

    Text encoders without vectors, such as T5, read the placeholders as they stand.
    """

    def replaced(
        wanted: Tensor, number: int, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> Tensor:
        places = inputs[0] == number
        wanted = wanted.to(output).repeat(int(places.sum()) // len(wanted), 1)
        return output.masked_scatter(places[..., None], wanted) if len(wanted) else output

    hooks = {}
    for name, wanted in vectors.items():
        tokenizer = speller_of(denoiser.pipeline, name)
        (number,) = tokenizer(PLACEHOLDER, add_special_tokens=False).input_ids
        hooks[name] = partial(replaced, wanted, number)
    return embeddings_as(denoiser, hooks)
