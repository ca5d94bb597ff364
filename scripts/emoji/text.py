"""The bundled text encoder and its contrastive warm-up against cached latents."""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from emoji.latents import AUGMENTATIONS, LatentCache
from emoji.loop import Schedule, step_generator, train
from emoji.tokenizer import CONTEXT

SEED = 4
WIDTH = 160
WARM_UP_STEPS = 300
WARM_UP_BATCH = 256


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained CLIPTextModel: 3 layers of width 160."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",
    )
    return CLIPTextModel(config)


class _LatentEncoder(nn.Module):
    """The picture side of the contrastive warm-up; thrown away afterwards."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 64, 3, 2, 1), nn.GroupNorm(8, 64), nn.SiLU(),
            nn.Conv2d(64, 128, 3, 2, 1), nn.GroupNorm(8, 128), nn.SiLU(),
            nn.Flatten(), nn.Linear(128 * 16, WIDTH),
        )  # fmt: skip
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, latents: Tensor, text: Tensor) -> Tensor:
        """The symmetric InfoNCE loss of matching latents [N, C, 16, 16] and text [N, WIDTH]."""
        pictures = F.normalize(self.layers(latents), dim=-1)
        logits = self.scale.exp() * pictures @ F.normalize(text, dim=-1).T
        labels = torch.arange(len(logits))
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def tokens(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Padded token numbers [N, CONTEXT]."""
    return tokenizer(
        list(captions), padding="max_length", max_length=CONTEXT, truncation=True,
        return_tensors="pt",
    ).input_ids  # fmt: skip


def warm_up_text(
    run: Path, cache: LatentCache, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel
) -> None:
    """Teach the text encoder to tell the cells apart before any UNet listens to it."""
    encoder = _LatentEncoder(cache.latents.shape[1])
    modules = {"text_encoder": text_encoder, "latent_encoder": encoder}
    cells = len(cache.canvas)

    def loss(step: int) -> Tensor:
        generator = step_generator(SEED, step)
        picks = torch.randperm(cells, generator=generator)[:WARM_UP_BATCH]
        shots = torch.randint(AUGMENTATIONS, (len(picks),), generator=generator)
        rows = picks * AUGMENTATIONS + shots
        captions = cache.captions(rows.tolist(), random.Random(f"warm {step}"))
        text = text_encoder(tokens(tokenizer, captions)).pooler_output
        return encoder(cache.latents[rows].float(), text)

    parameters = [p for module in modules.values() for p in module.parameters()]
    train(run, Schedule(WARM_UP_STEPS, 1.5e-3, 20), modules, parameters, loss)
