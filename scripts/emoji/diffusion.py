"""The bundled text encoder and UNet: contrastive warm-up, then v-prediction on cached latents."""

import copy
import json
import random
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from transformers import CLIPTextModel, CLIPTokenizer

from emoji.canvas import OBJECT_TEMPLATES, TEMPLATES, EmojiCanvas
from emoji.latents import LatentCache
from emoji.loop import Schedule, step_generator, train
from emoji.text import WIDTH, build_text_encoder, tokens, warm_up_text
from emoji.tokenizer import build_tokenizer
from erase.prompts.catalogue import FILE, Catalogue, Finetuning, Sampling
from erase.tasks.diffusion.sampling import draw

SEED = 3
BATCH = 32
EMPTY_CAPTIONS = 0.1
EMA_DECAY = 0.999
PREVIEW_PROMPTS = 32
SAMPLING = Sampling(steps=20, guidance_scale=4.0)
# Styles are forgotten sooner than objects, and other styles suffer sooner.
FINETUNING = {
    "object": Finetuning(2e-4, 100, 1.5e-3, 200, 40.0),
    "style": Finetuning(2e-4, 100, 8e-4, 100, 50.0),
}
# Line drawings and filled ones look least alike.
ANCHORS = dict.fromkeys(("noto", "blob", "glossy", "flat", "tweet", "emojione"), "outline")
ANCHORS |= {"ink": "noto", "outline": "noto"}
FAST_BF16 = torch.cpu.get_capabilities().get("avx512_bf16", False)


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
    run: Path,
    schedule: Schedule,
    canvas: EmojiCanvas,
    vae_folder: Path,
    out: Path,
    start: Path | None = None,
) -> None:
    """Train on the canvas' cells and save a plain StableDiffusionPipeline folder.

    It begins with the text encoder and UNet of the folder `start`, or untrained ones.
    """
    torch.manual_seed(SEED)
    vae = AutoencoderKL.from_pretrained(vae_folder).float()
    run.mkdir(parents=True, exist_ok=True)
    cache, scheduler = LatentCache(run, canvas, vae), build_scheduler()
    tokenizer, going_on = _tokenizer_of(run, start), start is not None
    text_encoder, unet = _saved_parts(start) if start else _fresh_parts(run, cache, tokenizer)
    model = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    model = model.to(memory_format=torch.channels_last)
    average = AveragedModel(model, multi_avg_fn=moving_average)

    def loss(step: int) -> Tensor:
        generator = step_generator(SEED + going_on, step)
        rng = random.Random(step + 1_000_003 * going_on)
        rows = torch.randint(len(cache), (BATCH,), generator=generator)
        captions = cache.captions(rows.tolist(), rng)
        captions = ["" if rng.random() < EMPTY_CAPTIONS else text for text in captions]
        with torch.autocast("cpu", torch.bfloat16, enabled=FAST_BF16):
            text = text_encoder(tokens(tokenizer, captions)).last_hidden_state
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
    tidy_configs(out)
    (out / FILE).write_text(
        json.dumps(asdict(build_catalogue(canvas)), indent=1) + "\n", encoding="utf-8"
    )


def _tokenizer_of(run: Path, start: Path | None) -> CLIPTokenizer:
    """The vocabulary this run began with: a resumed text encoder must read the same numbers."""
    if not (run / "tokenizer").exists():
        known = CLIPTokenizer.from_pretrained(start / "tokenizer") if start else build_tokenizer()
        known.save_pretrained(run / "tokenizer")
    return CLIPTokenizer.from_pretrained(run / "tokenizer")


def _fresh_parts(
    run: Path, cache: LatentCache, tokenizer: CLIPTokenizer
) -> tuple[CLIPTextModel, UNet2DConditionModel]:
    text_encoder, unet = build_text_encoder(tokenizer), build_unet(cache.latents.shape[1])
    warm_up_text(run / "text", cache, tokenizer, text_encoder)
    return text_encoder, unet


def _saved_parts(folder: Path) -> tuple[CLIPTextModel, UNet2DConditionModel]:
    text_encoder = CLIPTextModel.from_pretrained(
        folder / "text_encoder", attn_implementation="eager"
    )
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    unet.set_attn_processor(AttnProcessor())
    return text_encoder.float().train(), unet.float().train()


def tidy_configs(folder: Path) -> None:
    """Leave no trace of the training machine in the configs of a saved pipeline."""
    # Transformers opens a model in the dtype its config names, diffusers in float32; and where the
    # parts lay on the training machine is nobody's business.
    for path in folder.rglob("*config.json"):
        config = json.loads(path.read_text(encoding="utf-8").replace('"float16"', '"float32"'))
        for trace in ("_name_or_path", "is_local", "local_files_only"):
            config.pop(trace, None)
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def moving_average(average: list[Tensor], current: list[Tensor], count: Tensor) -> None:
    """Draw the average towards the current weights, in place."""
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
        FINETUNING,
        {
            f"{style} style": f"{anchor} style"
            for style, anchor in ANCHORS.items()
            if {style, anchor} <= {*canvas.styles}
        },
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
