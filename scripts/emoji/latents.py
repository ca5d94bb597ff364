"""The latents the bundled text encoder and UNet learn from, encoded once and kept with the run."""

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from emoji.canvas import BACKGROUNDS, EmojiCanvas, random_caption, random_placement
from emoji.loop import step_generator

SEED = 3
AUGMENTATIONS = 24


class LatentCache:
    """AUGMENTATIONS latents of every cell, with the background each lies on."""

    def __init__(self, run: Path, canvas: EmojiCanvas, vae: AutoencoderKL):
        self.canvas = canvas
        path = run / f"latents-{_cache_key(canvas, vae)}.safetensors"
        if not path.exists():
            save_file(_encode_augmentations(canvas, vae), path.with_suffix(".partial"))
            path.with_suffix(".partial").rename(path)
        stored = load_file(path)
        self.latents, self._background = stored["latents"], stored["background"]

    def __len__(self) -> int:
        return len(self.latents)

    def captions(self, rows: Sequence[int], rng: random.Random) -> list[str]:
        """A fresh random caption for each row."""
        names = list(BACKGROUNDS)
        texts = []
        for row in rows:
            cell = self.canvas.cells[row // AUGMENTATIONS]
            background = names[self._background[row]]
            texts.append(random_caption(cell, background, self.canvas.synonyms[cell.object], rng))
        return texts


def _cache_key(canvas: EmojiCanvas, vae: AutoencoderKL) -> str:
    names = json.dumps([canvas.objects, canvas.styles, AUGMENTATIONS])
    weights = b"".join(p.detach().numpy().tobytes() for p in vae.parameters())
    return hashlib.sha256(names.encode() + weights).hexdigest()[:12]


@torch.no_grad()
def _encode_augmentations(canvas: EmojiCanvas, vae: AutoencoderKL) -> dict[str, Tensor]:
    names, generator = list(BACKGROUNDS), step_generator(SEED, -1)
    latents, backgrounds = [], []
    for cells in torch.arange(len(canvas)).repeat_interleave(AUGMENTATIONS).split(96):
        placement, named = random_placement(len(cells), generator)
        pictures = 2 * canvas.render(cells, placement) - 1
        latents.append(vae.encode(pictures).latent_dist.mean.half())
        backgrounds += [names.index(name) for name in named]
    return {"latents": torch.cat(latents), "background": torch.tensor(backgrounds)}
