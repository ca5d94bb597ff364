"""The bundled text encoder and UNet: contrastive warm-up, then v-prediction on cached latents."""

import copy
import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from erase.bundled.canvas import (
    BACKGROUNDS,
    OBJECT_TEMPLATES,
    TEMPLATES,
    EmojiCanvas,
    random_caption,
    random_placement,
)
from erase.bundled.recipe_loop import Schedule, step_generator, train
from erase.bundled.recipe_tokenizer import CONTEXT, build_tokenizer
from erase.catalogue import FILE, Catalogue, Sampling
from erase.sampling import draw

SEED = 3
WIDTH = 160
BATCH = 32
AUGMENTATIONS = 24
WARM_UP_STEPS = 300
WARM_UP_BATCH = 256
EMPTY_CAPTIONS = 0.1
EMA_DECAY = 0.999
PREVIEW_PROMPTS = 32
SAMPLING = Sampling(steps=20, guidance_scale=4.0)
FINETUNING_RATE = 5e-4
FAST_BF16 = torch.cpu.get_capabilities().get("avx512_bf16", False)


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


def build_unet(channels: int = 8) -> UNet2DConditionModel:
    """An untrained UNet: text enters at 8 x 8 and 4 x 4, none at 16 x 16."""
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(64, 128, 256),
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )
    unet.set_attn_processor(AttnProcessor())
    return unet


def build_scheduler() -> DDIMScheduler:
    """Cosine schedule, v-prediction, trailing time steps."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,
        clip_sample=False,
    )


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


def _tokens(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
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
        generator = step_generator(SEED + 1, step)
        picks = torch.randperm(cells, generator=generator)[:WARM_UP_BATCH]
        shots = torch.randint(AUGMENTATIONS, (len(picks),), generator=generator)
        rows = picks * AUGMENTATIONS + shots
        captions = cache.captions(rows.tolist(), random.Random(f"warm {step}"))
        text = text_encoder(_tokens(tokenizer, captions)).pooler_output
        return encoder(cache.latents[rows].float(), text)

    parameters = [p for module in modules.values() for p in module.parameters()]
    train(run, Schedule(WARM_UP_STEPS, 1.5e-3, 20), modules, parameters, loss)


def diffusion_loss(
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
    latents: Tensor,
    text: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Velocity MSE at logit-normal time steps (Esser et al., 2024)."""
    latents = latents.to(memory_format=torch.channels_last)
    noise = torch.randn(latents.shape, generator=generator)
    logits = torch.randn(len(latents), generator=generator)
    steps = (logits.sigmoid() * scheduler.config.num_train_timesteps).long()
    noisy = scheduler.add_noise(latents, noise, steps)
    target = scheduler.get_velocity(latents, noise, steps)
    return F.mse_loss(unet(noisy, steps, text).sample.float(), target)


def train_diffusion(
    run: Path, schedule: Schedule, canvas: EmojiCanvas, vae_folder: Path, out: Path
) -> None:
    """Train on the canvas' cells and save a plain StableDiffusionPipeline folder."""
    torch.manual_seed(SEED)
    vae = AutoencoderKL.from_pretrained(vae_folder).float()
    tokenizer, scheduler = _tokenizer_of(run), build_scheduler()
    text_encoder, unet = build_text_encoder(tokenizer), build_unet(vae.config.latent_channels)
    cache = LatentCache(run, canvas, vae)
    warm_up_text(run / "text", cache, tokenizer, text_encoder)
    model = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    model = model.to(memory_format=torch.channels_last)
    average = AveragedModel(model, multi_avg_fn=_moving_average)

    def loss(step: int) -> Tensor:
        generator, rng = step_generator(SEED, step), random.Random(step)
        rows = torch.randint(len(cache), (BATCH,), generator=generator)
        captions = cache.captions(rows.tolist(), rng)
        captions = ["" if rng.random() < EMPTY_CAPTIONS else text for text in captions]
        with torch.autocast("cpu", torch.bfloat16, enabled=FAST_BF16):
            text = text_encoder(_tokens(tokenizer, captions)).last_hidden_state
            return diffusion_loss(unet, scheduler, cache.latents[rows].float(), text, generator)

    def pipeline() -> StableDiffusionPipeline:
        averaged = copy.deepcopy(average.module).to(memory_format=torch.contiguous_format)
        averaged["unet"].set_attn_processor(AttnProcessor())
        return assemble(vae, averaged["text_encoder"], tokenizer, averaged["unet"], scheduler)

    def preview() -> Tensor:
        return _draw_preview(pipeline(), canvas)

    train(
        run, schedule, {"model": model, "average": average}, model.parameters(),
        loss, lambda step: average.update_parameters(model), preview,
    )  # fmt: skip
    pipeline().to(torch.float16).save_pretrained(out)
    _tidy_configs(out)
    (out / FILE).write_text(json.dumps(asdict(build_catalogue(canvas)), indent=1) + "\n")


def _tokenizer_of(run: Path) -> CLIPTokenizer:
    """The vocabulary this run began with: a resumed text encoder must read the same numbers."""
    if not (run / "tokenizer").exists():
        build_tokenizer().save_pretrained(run / "tokenizer")
    return CLIPTokenizer.from_pretrained(run / "tokenizer")


def _tidy_configs(folder: Path) -> None:
    # Transformers opens a model in the dtype its config names, diffusers in float32; and where the
    # parts lay on the training machine is nobody's business.
    for path in folder.rglob("*config.json"):
        config = json.loads(path.read_text().replace('"float16"', '"float32"'))
        for trace in ("_name_or_path", "is_local", "local_files_only"):
            config.pop(trace, None)
        path.write_text(json.dumps(config, indent=2) + "\n")


@torch.no_grad()
def _moving_average(average: list[Tensor], current: list[Tensor], count: Tensor) -> None:
    # A short memory at first, or the average would hold on to the untrained weights.
    decay = min(EMA_DECAY, (1 + int(count)) / (10 + int(count)))
    torch._foreach_lerp_(average, current, 1 - decay)


def build_catalogue(canvas: EmojiCanvas) -> Catalogue:
    """What the trained pipeline draws and how it is meant to be sampled."""
    synonyms = {name: canvas.synonyms[name] for name in canvas.objects}
    return Catalogue(
        canvas.objects,
        canvas.styles,
        TEMPLATES,
        OBJECT_TEMPLATES,
        synonyms,
        SAMPLING,
        FINETUNING_RATE,
    )


def assemble(
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler,
) -> StableDiffusionPipeline:
    """The stock pipeline around the trained parts, without a safety checker."""
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _draw_preview(pipeline: StableDiffusionPipeline, canvas: EmojiCanvas) -> Tensor:
    stride = max(1, len(canvas) // PREVIEW_PROMPTS) | 1
    cells = canvas.cells[::stride][:PREVIEW_PROMPTS]
    prompts = [f"a {cell.object} in {cell.style} style" for cell in cells]
    return draw(pipeline, prompts, range(len(prompts)), SAMPLING).float()
