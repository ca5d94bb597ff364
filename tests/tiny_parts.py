"""Parts of the tiny pipelines: tokenizers made here,
    encoders and auto-encoders of the real classes, random weights.

Nothing is read from a hub. Every part is drawn from torch's seed, which `seeded` sets.
"""

# fmt: off
import ast
import importlib.util
import string
import warnings
from functools import cache
from pathlib import Path

import torch
import transformers as tf
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

warnings.filterwarnings("ignore")
tf.utils.logging.set_verbosity_error()

WORDS = (
    "a ghost a pizza a photo of the cat dog house garden nude violence in on with and painting "
    "picture drawing by van gogh style red blue green round small large person man woman bad ugly "
    "system user assistant think"
)
# The modules whose own prompt templates must split into whole words, as the real vocabularies do.
TEMPLATES = (
    "flux2.system_messages", "qwenimage.pipeline_qwenimage", "qwenimage21.pipeline_qwenimage21",
    "sana.pipeline_sana", "lumina2.pipeline_lumina2", "hunyuan_image.pipeline_hunyuanimage",
    "ovis_image.pipeline_ovis_image", "longcat_image.system_messages",
    "longcat_image.pipeline_longcat_image", "kandinsky5.pipeline_kandinsky_t2i",
    "kandinsky5.pipeline_kandinsky", "krea2.pipeline_krea2", "hunyuan_video.pipeline_hunyuan_video",
    "nucleusmoe_image.pipeline_nucleusmoe_image", "dreamlite.pipeline_dreamlite",
    "ideogram4.pipeline_ideogram4",
)
QWEN_SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
GPT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def seeded(seed: int) -> None:
    torch.manual_seed(seed)


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# ---------------------------------------------------------------- tokenizers


@cache
def corpus() -> tuple[str, ...]:
    """The long texts of the pipelines' own modules (prompt templates live there) and our words."""
    root = Path(importlib.util.find_spec("diffusers").submodule_search_locations[0])
    texts = [WORDS, *(" " + w for w in WORDS.split())]
    for name in TEMPLATES:
        path = root / "pipelines" / (name.replace(".", "/") + ".py")
        if path.exists():
            tree = ast.parse(path.read_text())
            texts += [
                n.value for n in ast.walk(tree)
                if isinstance(n, ast.Constant) and isinstance(n.value, str) and len(n.value) > 24
            ]
    return tuple(texts)


@cache
def bytes_bpe(size: int = 6000) -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """Vocabulary and merges of a byte-level BPE trained on `corpus`: one word, one token."""
    import json

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GPT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=1, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], tuple(tuple(m) for m in model["merges"])


def qwen_tokenizer(**extra: object) -> tf.Qwen2Tokenizer:
    vocab, merges = bytes_bpe()
    words = tf.Qwen2Tokenizer(vocab=dict(vocab), merges=list(merges), **extra)
    words.add_special_tokens({"additional_special_tokens": QWEN_SPECIAL[1:]})
    words.chat_template = CHATML
    words.model_max_length = 4096
    return words


def gemma_tokenizer(side: str = "right") -> tf.GemmaTokenizer:
    """Words with a "▁" in front, letters for the rest, `<bos>` first, as Gemma's."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    seen = dict.fromkeys(special)
    letters = dict.fromkeys("▁" + string.printable.strip() + "\n")
    merges: dict[tuple[str, str], None] = {}
    pieces: dict[str, None] = {}
    for text in corpus():
        for word in text.split(" "):
            if word.isalpha() and word.isascii():
                head = word[0]
                for letter in word[1:]:
                    merges[(head, letter)] = None
                    head += letter
                    pieces[head] = None
    for word in [x for x in string.ascii_letters] + list(pieces):
        merges[("▁", word)] = None
        pieces["▁" + word] = None
    vocab = {w: i for i, w in enumerate([*seen, *(x for x in letters if x not in seen), *pieces])}
    words = tf.GemmaTokenizer(vocab=vocab, merges=[m for m in merges], padding_side=side)
    words._tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)]
    )
    words.model_max_length = 4096
    return words


def plain_tokenizer(
    bos: str | None = "<s>", eos: str = "</s>", pad: str = "<pad>", side: str = "right",
    prefix: tuple[str, ...] = (), special: tuple[str, ...] = (), ends: bool = False,
) -> tf.PreTrainedTokenizerFast:
    """Byte-level BPE without a class of its own (Llama 3, GLM, Mistral, SmolLM)."""
    vocab, merges = bytes_bpe()
    tokenizer = Tokenizer(models.BPE(vocab=dict(vocab), merges=list(merges)))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GPT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    words = tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad, padding_side=side,
        additional_special_tokens=[*prefix, *special], clean_up_tokenization_spaces=False,
    )
    head = [*prefix, *([bos] if bos else [])]
    tail = [eos] if ends else []
    if head or tail:
        words._tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join([*head, "$A", *tail]),
            special_tokens=[(t, words.convert_tokens_to_ids(t)) for t in {*head, *tail}],
        )
    words.chat_template = CHATML
    words.model_max_length = 4096
    return words


def t5_tokenizer(extra: int = 0) -> tf.T5Tokenizer:
    pieces = ["▁" + w for w in dict.fromkeys(WORDS.split())]
    letters = [*"▁", *string.printable.strip()]
    scored = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    scored += [(p, -2.0) for p in pieces if len(p) > 2] + [(x, -6.0) for x in letters]
    words = tf.T5Tokenizer(vocab=scored, extra_ids=extra)
    words.model_max_length = 512
    return words


def clip_tokenizer(length: int = 77) -> tf.CLIPTokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(x + "</w>" for x in alphabet)]
    merges: dict[tuple[str, str], None] = {}
    for word in dict.fromkeys(WORDS.split()):
        parts = [*word[:-1], word[-1] + "</w>"]
        head = parts[0]
        for part in parts[1:]:
            merges[(head, part)] = None
            head += part
            pieces.append(head)
    pieces = list(dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"]))
    words = tf.CLIPTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=list(merges))
    words.model_max_length = length
    return words


def bert_tokenizer() -> tf.BertTokenizer:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS.split())]
    pieces += [x for x in string.ascii_lowercase if x not in pieces]
    pieces += ["##" + x for x in string.ascii_lowercase]
    words = tf.BertTokenizer(vocab={p: i for i, p in enumerate(pieces)})
    words.model_max_length = 77
    return words


def qwen_processor(kind: type = tf.Qwen2VLProcessor) -> object:
    words = qwen_tokenizer()
    video = tf.Qwen3VLVideoProcessor if kind is tf.Qwen3VLProcessor else tf.Qwen2VLVideoProcessor
    return kind(
        image_processor=tf.Qwen2VLImageProcessor(), tokenizer=words, video_processor=video(),
        chat_template=CHATML,
    )


# ---------------------------------------------------------------- text encoders


def t5(width: int = 32, kind: type = tf.T5EncoderModel, vocab: int = 256,
    layers: int = 2) -> object:
    config = tf.UMT5Config if kind is tf.UMT5EncoderModel else tf.T5Config
    return kind(
        config(
            vocab_size=vocab, d_model=width, d_kv=8, d_ff=32, num_layers=layers, num_heads=2,
            feed_forward_proj="gated-gelu", dropout_rate=0.0,
        )
    ).eval()


def clip(width: int = 16, kind: type = tf.CLIPTextModel, length: int = 77) -> object:
    words = clip_tokenizer()
    return kind(
        tf.CLIPTextConfig(
            vocab_size=len(words), hidden_size=width, intermediate_size=32, num_hidden_layers=3,
            num_attention_heads=2, max_position_embeddings=length, projection_dim=width,
            bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
        )
    ).eval()


def llm(width: int, layers: int, vocab: int) -> dict[str, object]:
    return {
        "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers,
        "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": vocab,
        "max_position_embeddings": 4096,
    }


def size(words: object) -> int:
    return len(words) + 16


def qwen3(words: object, width: int = 16, layers: int = 2, kind: type = tf.Qwen3Model) -> object:
    return kind(tf.Qwen3Config(**llm(width, layers, size(words)), head_dim=8)).eval()


def _rope(half: int) -> dict[str, object]:
    return {"mrope_section": [half - 2 * (half // 3), half // 3, half // 3], "rope_type": "default"}


def qwen25_vl(words: object, width: int = 16, layers: int = 2) -> object:
    config = tf.Qwen2_5_VLConfig(
        text_config={
            **llm(width, layers, size(words)), "rope_theta": 1e6, "rope_scaling": _rope(width // 4),
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
            "out_hidden_size": width, "fullatt_block_indexes": [0],
        },
        vision_start_token_id=words.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=words.convert_tokens_to_ids("<|vision_end|>"),
        image_token_id=words.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=words.convert_tokens_to_ids("<|video_pad|>"),
    )
    return tf.Qwen2_5_VLForConditionalGeneration(config).eval()


def qwen3_vl(
    words: object, width: int = 16, layers: int = 2, kind: type = tf.Qwen3VLForConditionalGeneration
) -> object:
    config = tf.Qwen3VLConfig(
        text_config={
            **llm(width, layers, size(words)), "head_dim": 8, "rope_theta": 1e6,
            "rope_scaling": _rope(4),
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
            "out_hidden_size": width, "deepstack_visual_indexes": [0],
        },
        vision_start_token_id=words.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=words.convert_tokens_to_ids("<|vision_end|>"),
        image_token_id=words.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=words.convert_tokens_to_ids("<|video_pad|>"),
    )
    return kind(config).eval()


def gemma2(words: object, width: int = 16, layers: int = 2) -> object:
    return tf.Gemma2Model(
        tf.Gemma2Config(**llm(width, layers, size(words)), head_dim=8, attn_implementation="eager")
    ).eval()


def llama(words: object, width: int = 16, layers: int = 2,
    kind: type = tf.LlamaForCausalLM) -> object:
    return kind(
        tf.LlamaConfig(
            **llm(width, layers, size(words)), bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
        )
    ).eval()


# ---------------------------------------------------------------- pictures


def vae(channels: int = 4, shift: float | None = None, levels: int = 2,
    **extra: object) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels, block_out_channels=(8,) * levels,
        norm_num_groups=4, latent_channels=channels, shift_factor=shift, **extra,
    ).eval()


def wan_vae(channels: int = 16) -> object:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=3, z_dim=channels, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True],
    ).eval()


def qwen_vae(channels: int = 4) -> object:
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(
        base_dim=24, z_dim=channels, dim_mult=[1, 2, 4], num_res_blocks=1,
        temperal_downsample=[False, True], latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
    ).eval()


def flux2_vae(channels: int = 1) -> object:
    from diffusers import AutoencoderKLFlux2

    return AutoencoderKLFlux2(
        sample_size=32, in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",), block_out_channels=(4,), layers_per_block=1,
        latent_channels=channels, norm_num_groups=1, use_quant_conv=False,
            use_post_quant_conv=False,
    ).eval()


def deep_vae(channels: int = 4) -> object:
    from diffusers import AutoencoderDC

    return AutoencoderDC(
        in_channels=3, latent_channels=channels, attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)), encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=[1, 1], downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu",
        scaling_factor=0.41407,
    ).eval()


def flow(**extra: object) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**extra)


def wake(model: torch.nn.Module) -> list[str]:
    """Weights that the class starts at nought, which hide the prompt from a random model."""
    names = []
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not weight.any() and not name.endswith("bias"):
                torch.nn.init.normal_(weight, std=0.05 if weight.ndim >= 2 else 0.3)
                names.append(name)
    return names


def quiet(pipe: object) -> object:
    """Without a progress bar, every model in eval mode, no denoiser deaf from its birth."""
    pipe.set_progress_bar_config(disable=True)
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            part.eval()
            if "transformer" in name or name in ("unet", "prior"):
                part.woken = wake(part)
    return pipe
