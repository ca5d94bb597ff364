"""The bundled AutoencoderKL: factor 4, 8 latent channels; it knows pictures, not concepts."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from emoji.canvas import EmojiCanvas, random_placement
from emoji.loop import Schedule, step_generator, train

BATCH = 8
KL_WEIGHT = 1e-6
GRADIENT_WEIGHT = 0.5
SEED = 1


def build_vae() -> AutoencoderKL:
    """An untrained AutoencoderKL: 64 x 64 x 3 pictures to 16 x 16 x 8 latents."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 48, 64),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
        scaling_factor=1.0,
    )


def random_pictures(canvas: EmojiCanvas, count: int, generator: torch.Generator) -> Tensor:
    """Random cells, placed at random: [count, 3, 64, 64] in -1..1."""
    cells = torch.randint(len(canvas), (count,), generator=generator)
    placement, _ = random_placement(count, generator)
    return 2 * canvas.render(cells, placement) - 1


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 of the pictures plus L1 of their horizontal and vertical differences."""
    edges = (output.diff(dim=axis) - target.diff(dim=axis) for axis in (2, 3))
    return (output - target).abs().mean() + GRADIENT_WEIGHT * sum(e.abs().mean() for e in edges)


def train_vae(run: Path, steps: int, out: Path) -> None:
    """Train on all cells, then fold the latent statistics into the 1x1 convolutions and save."""
    torch.manual_seed(SEED)
    canvas = EmojiCanvas()
    vae = build_vae()
    fixed = random_pictures(canvas, 32, step_generator(SEED, -1))

    def loss(step: int) -> Tensor:
        generator = step_generator(SEED, step)
        pictures = random_pictures(canvas, BATCH, generator)
        posterior = vae.encode(pictures).latent_dist
        output = vae.decode(posterior.sample(generator)).sample
        return reconstruction_loss(output, pictures) + KL_WEIGHT * posterior.kl().mean()

    @torch.no_grad()
    def preview() -> Tensor:
        output = vae(fixed).sample
        return torch.stack([fixed, output], 1).flatten(0, 1) / 2 + 0.5

    train(run, Schedule(steps, 1.5e-3), {"vae": vae}, vae.parameters(), loss, preview=preview)
    normalise_latents(vae, canvas)
    vae.half().save_pretrained(out)


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, canvas: EmojiCanvas, count: int = 512) -> None:
    """Give every latent channel mean 0 and deviation 1, so that `scaling_factor` is 1."""
    generator = step_generator(SEED, -2)
    batches = [random_pictures(canvas, 64, generator) for _ in range(count // 64)]
    latents = torch.cat([vae.encode(batch).latent_dist.mean for batch in batches])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:channels] /= deviation[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / deviation
    quant.bias[channels:] -= 2 * deviation.log()
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight *= deviation[None, :, None, None]
