"""A CLIP tokenizer whose byte-pair vocabulary is learnt from the captions."""

import json

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from emoji.canvas import BACKGROUNDS, OBJECT_TEMPLATES, TEMPLATES, Cell, EmojiCanvas, caption

VOCABULARY = 1536
CONTEXT = 32
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
START, END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer() -> CLIPTokenizer:
    """Bytes, bytes at a word's end, merges learnt on all captions, then the two special tokens."""
    byte_symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = normalizers.Lowercase(), words
    learner.train_from_iterator(
        _captions(),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY - len(byte_symbols),
            initial_alphabet=byte_symbols,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    merges = [tuple(pair) for pair in _merges(learner)]
    tokens = [*byte_symbols, *(symbol + "</w>" for symbol in byte_symbols)]
    tokens += ["".join(pair) for pair in merges] + [START, END]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)


def _captions() -> list[str]:
    canvas = EmojiCanvas()
    texts = [caption(cell, template) for cell in canvas.cells for template in TEMPLATES]
    names = canvas.objects + [word for words in canvas.synonyms.values() for word in words]
    for name in names:
        texts += [caption(Cell(name, "noto"), t, b) for t in OBJECT_TEMPLATES for b in BACKGROUNDS]
    return texts


def _merges(learner: Tokenizer) -> list[list[str]]:
    return json.loads(learner.to_str())["model"]["merges"]
