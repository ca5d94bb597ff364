"""A tiny pipeline of every class that is learned, of the real classes with random weights."""

# fmt: off
from collections.abc import Callable

import tiny_parts as parts
import torch
import transformers as tf
from diffusers import DiffusionPipeline


def _kandinsky5():
    from diffusers import Kandinsky5Transformer3DModel

    return Kandinsky5Transformer3DModel(
        in_visual_dim=16, in_text_dim=32, in_text_dim2=16, time_dim=16, out_visual_dim=16,
        patch_size=(1, 2, 2), model_dim=16, ff_dim=32, num_text_blocks=2, num_visual_blocks=2,
        axes_dims=(4, 2, 2), visual_cond=False, attention_type="regular",
    )


def kandinsky5_t2i(seed=0):
    from diffusers import Kandinsky5T2IPipeline

    parts.seeded(seed)
    processor = parts.qwen_processor()
    pipe = parts.quiet(
        Kandinsky5T2IPipeline(
            transformer=_kandinsky5(), vae=parts.vae(16, 0.1), tokenizer=processor,
            text_encoder=parts.qwen25_vl(processor.tokenizer, 32), text_encoder_2=parts.clip(16),
            tokenizer_2=parts.clip_tokenizer(), scheduler=parts.flow(shift=7.0),
        )
    )
    pipe.resolutions = [(64, 64)]  # every request goes to the nearest of this list
    return pipe


def _sana_denoiser(**extra):
    from diffusers import SanaTransformer2DModel

    return SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2,
        attention_head_dim=4, num_cross_attention_heads=2, cross_attention_head_dim=4,
        cross_attention_dim=8, caption_channels=16, sample_size=32, **extra,
    )


def sana(seed=0):
    from diffusers import DPMSolverMultistepScheduler, SanaPipeline

    parts.seeded(seed)
    words = parts.gemma_tokenizer()
    return parts.quiet(
        SanaPipeline(
            tokenizer=words, text_encoder=parts.gemma2(words), vae=parts.deep_vae(),
            transformer=_sana_denoiser(),
            scheduler=DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
        )
    )


def hunyuan_video_vae(channels=16, levels=4):
    from diffusers import AutoencoderKLHunyuanVideo

    return AutoencoderKLHunyuanVideo(
        in_channels=3, out_channels=3, latent_channels=channels,
        down_block_types=("HunyuanVideoDownBlock3D",) * levels,
        up_block_types=("HunyuanVideoUpBlock3D",) * levels, block_out_channels=(8,) * levels,
        layers_per_block=1, norm_num_groups=4, spatial_compression_ratio=8,
        temporal_compression_ratio=4, mid_block_add_attention=False,
    ).eval()


def kandinsky5_t2v(seed=0):
    from diffusers import Kandinsky5T2VPipeline

    parts.seeded(seed)
    processor = parts.qwen_processor()
    return parts.quiet(
        Kandinsky5T2VPipeline(
            transformer=_kandinsky5(), vae=hunyuan_video_vae(), tokenizer=processor,
            text_encoder=parts.qwen25_vl(processor.tokenizer, 32), text_encoder_2=parts.clip(16),
            tokenizer_2=parts.clip_tokenizer(), scheduler=parts.flow(shift=7.0),
        )
    )


def allegro(seed=0):
    from diffusers import (
        AllegroPipeline,
        AllegroTransformer3DModel,
        AutoencoderKLAllegro,
        DDIMScheduler,
    )

    parts.seeded(seed)
    transformer = AllegroTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, num_layers=2,
        cross_attention_dim=24, sample_width=8, sample_height=8, sample_frames=8,
            caption_channels=32,
    )
    vae = AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 4, up_block_types=("AllegroUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    vae.enable_tiling()
    return parts.quiet(
        AllegroPipeline(
            tokenizer=parts.t5_tokenizer(), text_encoder=parts.t5(), vae=vae.eval(),
            transformer=transformer, scheduler=DDIMScheduler(clip_sample=False),
        )
    )


def auraflow(seed=0):
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel

    parts.seeded(seed)
    transformer = AuraFlowTransformer2DModel(
        sample_size=32, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=2,
        attention_head_dim=8, num_attention_heads=4, caption_projection_dim=32,
        joint_attention_dim=32, out_channels=4, pos_embed_max_size=256,
    )
    return parts.quiet(
        AuraFlowPipeline(
            tokenizer=parts.t5_tokenizer(), text_encoder=parts.t5(kind=tf.UMT5EncoderModel),
            vae=parts.vae(), transformer=transformer, scheduler=parts.flow(),
        )
    )


def bria(seed=0):
    from diffusers import BriaPipeline, BriaTransformer2DModel

    parts.seeded(seed)
    transformer = BriaTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=None,
        axes_dims_rope=[0, 4, 4],
    )
    return parts.quiet(
        BriaPipeline(
            transformer=transformer, scheduler=parts.flow(), vae=parts.vae(4, 0.0),
            text_encoder=parts.t5(), tokenizer=parts.t5_tokenizer(),
        )
    )


def bria_fibo(seed=0):
    from diffusers import AutoencoderKLWan, BriaFiboPipeline, BriaFiboTransformer2DModel

    parts.seeded(seed)
    words = parts.plain_tokenizer()
    # The class writes the token 128000 where a prompt is empty.
    config = tf.SmolLM3Config(**parts.llm(32, 3, 128001), pad_token_id=words.pad_token_id)
    transformer = BriaFiboTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=64, text_encoder_dim=32,
        pooled_projection_dim=None, axes_dims_rope=[0, 4, 4],
    )
    vae = AutoencoderKLWan(
        base_dim=4, decoder_base_dim=4, num_res_blocks=1, in_channels=12, out_channels=12,
        patch_size=2, scale_factor_spatial=16, scale_factor_temporal=4,
        temperal_downsample=[False, True, True], z_dim=16,
    )
    return parts.quiet(
        BriaFiboPipeline(
            transformer=transformer, scheduler=parts.flow(), vae=vae.eval(),
            text_encoder=tf.SmolLM3ForCausalLM(config).eval(), tokenizer=words,
        )
    )


def bria_fibo2(seed=0):
    from diffusers import BriaFibo2Pipeline, BriaFibo2Transformer2DModel

    parts.seeded(seed)
    processor = parts.qwen_processor(tf.Qwen3VLProcessor)
    transformer = BriaFibo2Transformer2DModel(
        in_channels=4, patch_size=2, dim=32, n_layers=3, n_refiner_layers=1, n_heads=2,
            cap_feat_dim=48,
        injection_layer_ids=(0, 0, 1, 1, 2), perceiver_num_layers=1, min_num_gist_tokens=4,
        max_num_gist_tokens=8, gist_step=2, gist_min_text_len=4, gist_max_text_len=32,
        axes_dims=(8, 4, 4), axes_lens=(256, 32, 32),
    )
    return parts.quiet(
        BriaFibo2Pipeline(
            transformer=transformer, scheduler=parts.flow(), vae=parts.flux2_vae(4),
            text_encoder=parts.qwen3_vl(processor.tokenizer, 16, 36), processor=processor,
        )
    )


def chroma(seed=0):
    from diffusers import ChromaPipeline, ChromaTransformer2DModel

    parts.seeded(seed)
    transformer = ChromaTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=32, approximator_layers=1, approximator_num_channels=16,
    )
    return parts.quiet(
        ChromaPipeline(
            scheduler=parts.flow(), vae=parts.vae(4, 0.1), text_encoder=parts.t5(),
            tokenizer=parts.t5_tokenizer(), transformer=transformer,
        )
    )


def cogvideox(seed=0):
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )

    parts.seeded(seed)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=4,
            time_embed_dim=8,
        text_embed_dim=32, num_layers=2, sample_width=2, sample_height=2, sample_frames=9,
        patch_size=2, temporal_compression_ratio=4,
    )
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
    )
    return parts.quiet(
        CogVideoXPipeline(
            tokenizer=parts.t5_tokenizer(), text_encoder=parts.t5(), vae=vae.eval(),
            transformer=transformer,
            scheduler=CogVideoXDDIMScheduler(prediction_type="v_prediction",
                rescale_betas_zero_snr=True),
        )
    )


def cogview4(seed=0):
    from diffusers import CogView4Pipeline, CogView4Transformer2DModel

    parts.seeded(seed)
    words = parts.plain_tokenizer(
        bos=None, eos="<|user|>", pad="<|endoftext|>", side="left", prefix=("[gMASK]", "<sop>")
    )
    config = tf.GlmConfig(
        **parts.llm(32, 2, parts.size(words)), head_dim=16, pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
    )
    transformer = CogView4Transformer2DModel(
        patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        out_channels=4, text_embed_dim=32, time_embed_dim=8, condition_dim=4,
        rope_axes_dim=(64, 64),
    )
    scheduler = parts.flow(
        base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True,
        time_shift_type="linear",
    )
    return parts.quiet(
        CogView4Pipeline(
            tokenizer=words, text_encoder=tf.GlmModel(config).eval(), vae=parts.vae(),
            transformer=transformer, scheduler=scheduler,
        )
    )


class Harmless:
    """Stands in for the guard-rail model, which is large and no part of the family."""

    def to(self, *args, **kwargs):
        return self

    def check_text_safety(self, prompt):
        return True

    def check_video_safety(self, video):
        return video


def cosmos2_t2i(seed=0):
    from diffusers import Cosmos2TextToImagePipeline, CosmosTransformer3DModel

    parts.seeded(seed)
    transformer = CosmosTransformer3DModel(
        in_channels=16, out_channels=16, num_attention_heads=2, attention_head_dim=16, num_layers=2,
        mlp_ratio=2, text_embed_dim=32, adaln_lora_dim=4, max_size=(4, 32, 32), patch_size=(1, 2,
            2),
        rope_scale=(2.0, 1.0, 1.0), concat_padding_mask=True, extra_pos_embed_type="learnable",
    )
    return parts.quiet(
        Cosmos2TextToImagePipeline(
            text_encoder=parts.t5(), tokenizer=parts.t5_tokenizer(), transformer=transformer,
            vae=parts.wan_vae(), scheduler=parts.flow(use_karras_sigmas=True),
            safety_checker=Harmless(),
        )
    )


def deepfloyd_if(seed=0):
    from diffusers import DDPMScheduler, IFPipeline, UNet2DConditionModel

    parts.seeded(seed)
    unet = UNet2DConditionModel(
        sample_size=16, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), in_channels=3,
        out_channels=6, cross_attention_dim=32, encoder_hid_dim=32, attention_head_dim=8,
        addition_embed_type="text", addition_embed_type_num_heads=2,
            cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift", act_fn="gelu", norm_num_groups=8,
    )
    return parts.quiet(
        IFPipeline(
            tokenizer=parts.t5_tokenizer(), text_encoder=parts.t5(), unet=unet,
            scheduler=DDPMScheduler(
                beta_schedule="squaredcos_cap_v2", variance_type="learned_range", thresholding=True,
                dynamic_thresholding_ratio=0.95, sample_max_value=1.5,
            ),
            safety_checker=None, feature_extractor=None, watermarker=None,
            requires_safety_checker=False,
        )
    )


def dreamlite(seed=0):
    from diffusers import AutoencoderTiny, DreamLitePipeline, DreamLiteUNetModel

    parts.seeded(seed)
    processor = parts.qwen_processor(tf.Qwen3VLProcessor)
    unet = DreamLiteUNetModel(
        sample_size=8, in_channels=4, out_channels=4,
        down_block_types=("DreamLiteCrossAttnNoSelfAttnDownBlock2D",
            "DreamLiteCrossAttnDownBlock2D"),
        up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"),
        block_out_channels=(16, 32), cross_attention_dim=32, attention_head_dim=8,
        layers_per_block=1, norm_num_groups=8, transformer_layers_per_block=1,
    )
    vae = AutoencoderTiny(
        encoder_block_out_channels=(16, 16), decoder_block_out_channels=(16, 16),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), latent_channels=4,
    )
    return parts.quiet(
        DreamLitePipeline(
            text_encoder=parts.qwen3_vl(processor.tokenizer, 32), tokenizer=processor.tokenizer,
            processor=processor, vae=vae.eval(), unet=unet, scheduler=parts.flow(),
        )
    )


SPECIAL = ("[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]", "[SYSTEM_PROMPT]")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[INST]{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endif %}[/INST]{% endfor %}"
)


def flux2(seed=0):
    from diffusers import Flux2Pipeline, Flux2Transformer2DModel

    parts.seeded(seed)
    words = parts.plain_tokenizer(special=SPECIAL)
    processor = tf.PixtralProcessor(
        image_processor=tf.PixtralImageProcessor(), tokenizer=words, chat_template=TEMPLATE
    )
    config = tf.Mistral3Config(
        text_config={
            "model_type": "mistral", **parts.llm(16, 31, parts.size(words)), "head_dim": 8,
        },
        vision_config={
            "model_type": "pixtral", "hidden_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 16, "image_size": 30, "patch_size": 6,
        },
        image_token_index=words.convert_tokens_to_ids("[IMG]"),
    )
    transformer = Flux2Transformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=48, timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
    )
    return parts.quiet(
        Flux2Pipeline(
            scheduler=parts.flow(), vae=parts.flux2_vae(), tokenizer=processor,
            text_encoder=tf.Mistral3ForConditionalGeneration(config), transformer=transformer,
        )
    )


def flux2_klein(seed=0):
    from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel

    parts.seeded(seed)
    words = parts.qwen_tokenizer()
    transformer = Flux2Transformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=48, timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )
    return parts.quiet(
        Flux2KleinPipeline(
            scheduler=parts.flow(), vae=parts.flux2_vae(), tokenizer=words,
            text_encoder=parts.qwen3(words, layers=28, kind=tf.Qwen3ForCausalLM),
            transformer=transformer,
        )
    )


def hidream(seed=0):
    from diffusers import HiDreamImagePipeline, HiDreamImageTransformer2DModel

    parts.seeded(seed)
    words = parts.plain_tokenizer()
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1,
        attention_head_dim=8, num_attention_heads=4, caption_channels=[32, 16], text_emb_dim=32,
        num_routed_experts=4, num_activated_experts=2, axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32), llama_layers=(0, 1),
    )
    for name, weight in transformer.named_parameters():
        if name.endswith("gate.weight"):  # torch.empty in the class
            import torch

            torch.nn.init.normal_(weight, std=0.2)
    projected = tf.CLIPTextModelWithProjection
    pipe = parts.quiet(
        HiDreamImagePipeline(
            scheduler=parts.flow(), vae=parts.vae(4, 0.1), text_encoder=parts.clip(16, projected,
                128),
            tokenizer=parts.clip_tokenizer(128), text_encoder_2=parts.clip(16, projected, 128),
            tokenizer_2=parts.clip_tokenizer(128), text_encoder_3=parts.t5(),
            tokenizer_3=parts.t5_tokenizer(), text_encoder_4=parts.llama(words), tokenizer_4=words,
            transformer=transformer,
        )
    )
    pipe.default_sample_size = 16  # every request is scaled to the area of this size
    return pipe


def hunyuan_dit(seed=0):
    from diffusers import DDPMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline

    parts.seeded(seed)
    words = parts.bert_tokenizer()
    bert = tf.BertModel(
        tf.BertConfig(
            vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=77,
        )
    ).eval()
    transformer = HunyuanDiT2DModel(
        sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3,
        in_channels=4, cross_attention_dim=32, cross_attention_dim_t5=32, pooled_projection_dim=16,
        hidden_size=24, activation_fn="gelu-approximate",
    )
    return parts.quiet(
        HunyuanDiTPipeline(
            vae=parts.vae(levels=4), text_encoder=bert, tokenizer=words, transformer=transformer,
            scheduler=DDPMScheduler(prediction_type="v_prediction"), safety_checker=None,
            feature_extractor=None, requires_safety_checker=False, text_encoder_2=parts.t5(),
            tokenizer_2=parts.t5_tokenizer(),
        )
    )


def hunyuan_image(seed=0, distilled=False):
    from diffusers import (
        AutoencoderKLHunyuanImage,
        HunyuanImagePipeline,
        HunyuanImageTransformer2DModel,
    )
    from diffusers.guiders import AdaptiveProjectedMixGuidance

    parts.seeded(seed)
    words = parts.qwen_tokenizer()
    transformer = HunyuanImageTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=8, num_layers=1,
        num_single_layers=2, num_refiner_layers=1, patch_size=(1, 1), guidance_embeds=distilled,
        text_embed_dim=32, text_embed_2_dim=32, rope_axes_dim=(4, 4),
    )
    vae = AutoencoderKLHunyuanImage(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(32, 64, 64, 64),
        layers_per_block=1, scaling_factor=0.476986, spatial_compression_ratio=8, sample_size=128,
    )
    guide = None if distilled else AdaptiveProjectedMixGuidance()
    return parts.quiet(
        HunyuanImagePipeline(
            scheduler=parts.flow(shift=7.0), vae=vae.eval(),
            text_encoder=parts.qwen25_vl(words, 32, 3), tokenizer=words,
                text_encoder_2=parts.t5(32, vocab=1510),
            tokenizer_2=tf.ByT5Tokenizer(), transformer=transformer, guider=guide,
            ocr_guider=None if distilled else AdaptiveProjectedMixGuidance(),
        )
    )


def hunyuan_video(seed=0):
    from diffusers import HunyuanVideoPipeline, HunyuanVideoTransformer3DModel

    parts.seeded(seed)
    words = parts.plain_tokenizer()
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1,
        num_single_layers=2, num_refiner_layers=1, patch_size=1, patch_size_t=1, text_embed_dim=16,
        pooled_projection_dim=16, rope_axes_dim=(2, 4, 4),
    )
    return parts.quiet(
        HunyuanVideoPipeline(
            text_encoder=parts.llama(words, layers=4, kind=tf.LlamaModel), tokenizer=words,
            transformer=transformer, vae=hunyuan_video_vae(4), scheduler=parts.flow(shift=7.0),
            text_encoder_2=parts.clip(16), tokenizer_2=parts.clip_tokenizer(),
        )
    )


def hunyuan_video15(seed=0):
    from diffusers import (
        AutoencoderKLHunyuanVideo15,
        HunyuanVideo15Pipeline,
        HunyuanVideo15Transformer3DModel,
    )
    from diffusers.guiders import ClassifierFreeGuidance

    parts.seeded(seed)
    words = parts.qwen_tokenizer()
    config = tf.Qwen2_5_VLTextConfig(
        **parts.llm(16, 3, parts.size(words)), rope_theta=1e6, rope_scaling=parts._rope(4)
    )
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2,
        num_refiner_layers=1, mlp_ratio=2.0, patch_size=1, patch_size_t=1, text_embed_dim=16,
        text_embed_2_dim=32, image_embed_dim=12, rope_axes_dim=(2, 2, 4), target_size=16,
        task_type="t2v",
    )
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(16, 16), layers_per_block=1,
        spatial_compression_ratio=4, temporal_compression_ratio=2, downsample_match_channel=False,
        upsample_match_channel=False,
    )
    return parts.quiet(
        HunyuanVideo15Pipeline(
            text_encoder=tf.Qwen2_5_VLTextModel(config).eval(), tokenizer=words,
            transformer=transformer, vae=vae.eval(), scheduler=parts.flow(shift=7.0),
            text_encoder_2=parts.t5(32, vocab=1510), tokenizer_2=tf.ByT5Tokenizer(),
            guider=ClassifierFreeGuidance(guidance_scale=1.0),
        )
    )


def ideogram4(seed=0):
    from diffusers import Ideogram4Pipeline, Ideogram4Transformer2DModel
    from diffusers.pipelines.ideogram4 import pipeline_ideogram4 as source

    parts.seeded(seed)
    words = parts.qwen_tokenizer()
    layers = source.QWEN3_VL_ACTIVATION_LAYERS

    def denoiser():
        return Ideogram4Transformer2DModel(
            in_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2,
            intermediate_size=32, adaln_dim=16, llm_features_dim=16 * len(layers),
            mrope_section=(4, 2, 2),
        )

    return parts.quiet(
        Ideogram4Pipeline(
            scheduler=parts.flow(), vae=parts.flux2_vae(4),
            text_encoder=parts.qwen3_vl(words, 16, max(layers) + 1, tf.Qwen3VLModel),
                tokenizer=words,
            transformer=denoiser(), unconditional_transformer=denoiser(),
        )
    )


def kandinsky3(seed=0):
    from diffusers import DDPMScheduler, Kandinsky3Pipeline, Kandinsky3UNet, VQModel

    parts.seeded(seed)
    unet = Kandinsky3UNet(
        in_channels=4, time_embedding_dim=4, groups=2, attention_head_dim=4, layers_per_block=2,
        block_out_channels=(16, 32), cross_attention_dim=4, encoder_hid_dim=32,
    )
    movq = VQModel(
        block_out_channels=[16, 16], down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2, in_channels=3, out_channels=3, latent_channels=4,
        layers_per_block=1, norm_num_groups=8, num_vq_embeddings=12, vq_embed_dim=4,
    )
    return parts.quiet(
        Kandinsky3Pipeline(
            tokenizer=parts.t5_tokenizer(), text_encoder=parts.t5(), unet=unet,
            scheduler=DDPMScheduler(clip_sample=False), movq=movq.eval(),
        )
    )


def krea2(seed=0):
    from diffusers import Krea2Pipeline, Krea2Transformer2DModel

    parts.seeded(seed)
    words = parts.qwen_tokenizer()
    transformer = Krea2Transformer2DModel(
        in_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=32, timestep_embed_dim=8, text_hidden_dim=16,
        num_text_layers=3, text_num_attention_heads=2, text_num_key_value_heads=1,
        text_intermediate_size=16, num_layerwise_text_blocks=1, num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2), rope_theta=1000.0,
    )
    scheduler = parts.flow(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256,
        max_image_seq_len=6400,
    )
    return parts.quiet(
        Krea2Pipeline(
            scheduler=scheduler, vae=parts.qwen_vae(), tokenizer=words,
            text_encoder=parts.qwen3_vl(words, kind=tf.Qwen3VLModel), transformer=transformer,
            text_encoder_select_layers=(0, 1, 2),
        )
    )


def latte(seed=0):
    from diffusers import DDIMScheduler, LattePipeline, LatteTransformer3DModel

    parts.seeded(seed)
    transformer = LatteTransformer3DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3,
        caption_channels=32, in_channels=4, cross_attention_dim=24, out_channels=8,
        attention_bias=True, activation_fn="gelu-approximate", num_embeds_ada_norm=1000,
        norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
    )
    return parts.quiet(
        LattePipeline(
            tokenizer=parts.t5_tokenizer(), text_encoder=parts.t5(), vae=parts.vae(),
            transformer=transformer, scheduler=DDIMScheduler(clip_sample=False),
        )
    )


def longcat_image(seed=0):
    from diffusers import LongCatImagePipeline, LongCatImageTransformer2DModel

    parts.seeded(seed)
    processor = parts.qwen_processor()
    words = processor.tokenizer
    transformer = LongCatImageTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=1, num_single_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
    )
    return parts.quiet(
        LongCatImagePipeline(
            scheduler=parts.flow(), vae=parts.vae(16, 0.1), text_encoder=parts.qwen25_vl(words, 32),
            tokenizer=words, text_processor=processor, transformer=transformer,
        )
    )


def ltx(seed=0):
    from diffusers import AutoencoderKLLTXVideo, LTXPipeline, LTXVideoTransformer3DModel

    parts.seeded(seed)
    vae = AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5, upsample_residual=(False,) * 4, upsample_factor=(1,) * 4,
        patch_size=1, patch_size_t=1,
    )
    transformer = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8,
        cross_attention_dim=32, num_layers=2, caption_channels=32,
    )
    return parts.quiet(
        LTXPipeline(
            scheduler=parts.flow(), vae=vae.eval(), text_encoder=parts.t5(),
            tokenizer=parts.t5_tokenizer(), transformer=transformer,
        )
    )


def lumina(seed=0):
    from diffusers import LuminaNextDiT2DModel, LuminaPipeline

    parts.seeded(seed)
    words = parts.gemma_tokenizer()
    config = tf.GemmaConfig(**parts.llm(16, 2, parts.size(words)), head_dim=8)
    transformer = LuminaNextDiT2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=16, num_layers=2,
        num_attention_heads=2, num_kv_heads=1, multiple_of=16, cross_attention_dim=16,
    )
    torch.nn.init.normal_(transformer.pad_token, std=0.02)  # torch.empty in the class
    return parts.quiet(
        LuminaPipeline(
            transformer=transformer, scheduler=parts.flow(), vae=parts.vae(),
            text_encoder=tf.GemmaModel(config).eval(), tokenizer=words,
        )
    )


def lumina2(seed=0):
    from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel

    parts.seeded(seed)
    words = parts.gemma_tokenizer()
    transformer = Lumina2Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=16, num_layers=2,
        num_refiner_layers=2, num_attention_heads=2, num_kv_heads=1, multiple_of=16,
        axes_dim_rope=(4, 2, 2), cap_feat_dim=16,
    )
    return parts.quiet(
        Lumina2Pipeline(
            transformer=transformer, scheduler=parts.flow(), vae=parts.vae(4, 0.1),
            text_encoder=parts.gemma2(words), tokenizer=words,
        )
    )


def mochi(seed=0):
    from diffusers import AutoencoderKLMochi, MochiPipeline, MochiTransformer3DModel

    parts.seeded(seed)
    transformer = MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2,
        pooled_projection_dim=16, in_channels=12, text_embed_dim=32, time_embed_dim=4,
        max_sequence_length=32,
    )
    vae = AutoencoderKLMochi(
        latent_channels=12, out_channels=3, encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32), layers_per_block=(1, 1, 1, 1, 1),
    )
    return parts.quiet(
        MochiPipeline(
            scheduler=parts.flow(), vae=vae.eval(), text_encoder=parts.t5(),
            tokenizer=parts.t5_tokenizer(), transformer=transformer,
        )
    )


def nucleus_moe(seed=0, experts=False):
    from diffusers import NucleusMoEImagePipeline, NucleusMoEImageTransformer2DModel

    parts.seeded(seed)
    processor = parts.qwen_processor(tf.Qwen3VLProcessor)
    transformer = NucleusMoEImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=4, joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
            moe_enabled=experts,
        capacity_factors=[8.0, 8.0],
    )
    return parts.quiet(
        NucleusMoEImagePipeline(
            transformer=transformer, scheduler=parts.flow(), vae=parts.qwen_vae(),
            text_encoder=parts.qwen3_vl(processor.tokenizer, layers=9), processor=processor,
        )
    )


def omnigen(seed=0):
    from diffusers import OmniGenPipeline, OmniGenTransformer2DModel

    parts.seeded(seed)
    words = parts.plain_tokenizer()
    transformer = OmniGenTransformer2DModel(
        hidden_size=16, num_attention_heads=4, num_key_value_heads=4, intermediate_size=32,
        num_layers=2, in_channels=4, time_step_dim=4, vocab_size=parts.size(words),
        pad_token_id=words.pad_token_id,
        rope_scaling={"long_factor": [1, 2], "short_factor": [1, 2]},
    )
    return parts.quiet(
        OmniGenPipeline(
            transformer=transformer, scheduler=parts.flow(invert_sigmas=True,
                num_train_timesteps=1),
            vae=parts.vae(4, levels=4), tokenizer=words,
        )
    )


def ovis_image(seed=0):
    from diffusers import OvisImagePipeline, OvisImageTransformer2DModel

    parts.seeded(seed)
    words = parts.qwen_tokenizer()
    transformer = OvisImageTransformer2DModel(
        patch_size=1, in_channels=16, out_channels=16, num_layers=1, num_single_layers=2,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    return parts.quiet(
        OvisImagePipeline(
            scheduler=parts.flow(), vae=parts.vae(4, 0.1), text_encoder=parts.qwen3(words, 32),
            tokenizer=words, transformer=transformer,
        )
    )


def pixart_alpha(seed=0):
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

    parts.seeded(seed)
    transformer = PixArtTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=8, num_layers=2,
        attention_head_dim=8, num_attention_heads=3, cross_attention_dim=24, caption_channels=32,
        use_additional_conditions=False,
    )
    return parts.quiet(
        PixArtAlphaPipeline(
            tokenizer=parts.t5_tokenizer(), text_encoder=parts.t5(), vae=parts.vae(),
            transformer=transformer, scheduler=DPMSolverMultistepScheduler(),
        )
    )


def prx(seed=0):
    from diffusers import PRXPipeline, PRXTransformer2DModel
    from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    parts.seeded(seed)
    words = parts.gemma_tokenizer()
    words.model_max_length = 64
    config = T5GemmaModuleConfig(
        **parts.llm(16, 2, parts.size(words)), head_dim=8, dropout_rate=0.0,
        layer_types=["full_attention"] * 2, query_pre_attn_scalar=8,
    )
    transformer = PRXTransformer2DModel(
        patch_size=1, in_channels=4, context_in_dim=16, hidden_size=16, mlp_ratio=2.0, num_heads=2,
        depth=2, axes_dim=[4, 4],
    )
    return parts.quiet(
        PRXPipeline(
            transformer=transformer, scheduler=parts.flow(),
                text_encoder=T5GemmaEncoder(config).eval(),
            tokenizer=words, vae=parts.vae(4, 0.0), default_sample_size=32,
        )
    )


def prx_pixel(seed=0):
    from diffusers import PRXPixelPipeline, PRXTransformer2DModel

    parts.seeded(seed)
    words = parts.qwen_tokenizer()
    transformer = PRXTransformer2DModel(
        patch_size=2, in_channels=3, context_in_dim=16, hidden_size=16, mlp_ratio=2.0, num_heads=2,
        depth=2, axes_dim=[4, 4], bottleneck_size=8, resolution_embeds=True,
    )
    return parts.quiet(
        PRXPixelPipeline(
            transformer=transformer, scheduler=parts.flow(), text_encoder=parts.qwen3(words),
            tokenizer=words, prompt_max_tokens=16,
        )
    )


def qwen_image(seed=0):
    from diffusers import QwenImagePipeline, QwenImageTransformer2DModel

    parts.seeded(seed)
    words = parts.qwen_tokenizer()
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=3, joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
    )
    return parts.quiet(
        QwenImagePipeline(
            scheduler=parts.flow(), vae=parts.qwen_vae(), text_encoder=parts.qwen25_vl(words),
            tokenizer=words, transformer=transformer,
        )
    )


def qwen_image21(seed=0):
    from diffusers import (
        AutoencoderKLQwenImage21,
        QwenImage21Pipeline,
        QwenImage21Transformer2DModel,
    )

    parts.seeded(seed)
    processor = parts.qwen_processor(tf.Qwen3VLProcessor)
    vae = AutoencoderKLQwenImage21(
        base_dim=8, z_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        latents_mean=[0.0] * 8, latents_std=[1.0] * 8,
    )
    transformer = QwenImage21Transformer2DModel(
        patch_size=1, in_channels=8, out_channels=8, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, context_in_dim=16, axes_dims_rope=(4, 6, 6),
    )
    return parts.quiet(
        QwenImage21Pipeline(
            scheduler=parts.flow(), vae=vae.eval(),
                text_encoder=parts.qwen3_vl(processor.tokenizer),
            processor=processor, transformer=transformer,
        )
    )


def sana_sprint(seed=0):
    from diffusers import SanaSprintPipeline, SCMScheduler

    parts.seeded(seed)
    words = parts.gemma_tokenizer()
    return parts.quiet(
        SanaSprintPipeline(
            tokenizer=words, text_encoder=parts.gemma2(words), vae=parts.deep_vae(),
            transformer=_sana_denoiser(qk_norm="rms_norm_across_heads", guidance_embeds=True),
            scheduler=SCMScheduler(),
        )
    )


def sana_video(seed=0):
    from diffusers import (
        DPMSolverMultistepScheduler,
        SanaVideoPipeline,
        SanaVideoTransformer3DModel,
    )

    parts.seeded(seed)
    words = parts.gemma_tokenizer()
    transformer = SanaVideoTransformer3DModel(
        in_channels=16, out_channels=16, num_attention_heads=2, attention_head_dim=12, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24,
        caption_channels=16, sample_size=8, patch_size=(1, 2, 2), rope_max_seq_len=32,
    )
    return parts.quiet(
        SanaVideoPipeline(
            tokenizer=words, text_encoder=parts.gemma2(words), vae=parts.wan_vae(),
            transformer=transformer,
            scheduler=DPMSolverMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
            ),
        )
    )


def skyreels_v2(seed=0):
    from diffusers import SkyReelsV2Pipeline, SkyReelsV2Transformer3DModel, UniPCMultistepScheduler

    parts.seeded(seed)
    transformer = SkyReelsV2Transformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16,
        out_channels=16, text_dim=32, freq_dim=256, ffn_dim=32, num_layers=2, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )
    return parts.quiet(
        SkyReelsV2Pipeline(
            tokenizer=parts.t5_tokenizer(), text_encoder=parts.t5(kind=tf.UMT5EncoderModel),
            vae=parts.wan_vae(), transformer=transformer,
            scheduler=UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
            ),
        )
    )


def stable_cascade_prior(seed=0):
    from diffusers import DDPMWuerstchenScheduler, StableCascadePriorPipeline
    from diffusers.models import StableCascadeUNet

    parts.seeded(seed)
    prior = StableCascadeUNet(
        in_channels=4, out_channels=4, conditioning_dim=32, block_out_channels=(32, 32),
        num_attention_heads=(2, 2), down_num_layers_per_block=(1, 1), up_num_layers_per_block=(1,
            1),
        down_blocks_repeat_mappers=(1, 1), up_blocks_repeat_mappers=(1, 1), switch_level=(False,),
        clip_image_in_channels=32, clip_text_in_channels=32, clip_text_pooled_in_channels=32,
        timestep_ratio_embedding_dim=16, dropout=(0.0, 0.0),
        block_types_per_layer=(
            ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
        ) * 2,
    )
    return parts.quiet(
        StableCascadePriorPipeline(
            tokenizer=parts.clip_tokenizer(),
            text_encoder=parts.clip(32, tf.CLIPTextModelWithProjection), prior=prior,
            scheduler=DDPMWuerstchenScheduler(),
        )
    )


def _wan_denoiser():
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16,
        out_channels=16, text_dim=32, freq_dim=32, ffn_dim=32, num_layers=2, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )


def wan(seed=0, both=True):
    from diffusers import UniPCMultistepScheduler, WanPipeline

    parts.seeded(seed)
    extra = {"transformer_2": _wan_denoiser(), "boundary_ratio": 0.875} if both else {}
    return parts.quiet(
        WanPipeline(
            tokenizer=parts.t5_tokenizer(), text_encoder=parts.t5(kind=tf.UMT5EncoderModel),
            vae=parts.wan_vae(), transformer=_wan_denoiser(),
            scheduler=UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
            **extra,
        )
    )


def _z_image_denoiser(**extra):
    from diffusers import ZImageTransformer2DModel

    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16, dim=32, n_layers=2,
        n_refiner_layers=2, n_heads=2, n_kv_heads=2, cap_feat_dim=16, axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32], **extra,
    )
    with torch.no_grad():  # torch.empty in the class
        torch.nn.init.normal_(transformer.x_pad_token, std=0.02)
        torch.nn.init.normal_(transformer.cap_pad_token, std=0.02)
    return transformer


def z_image(seed=0):
    from diffusers import ZImagePipeline

    parts.seeded(seed)
    words = parts.qwen_tokenizer()
    transformer = _z_image_denoiser()
    return parts.quiet(
        ZImagePipeline(
            scheduler=parts.flow(), vae=parts.vae(16, 0.1), text_encoder=parts.qwen3(words,
                layers=3),
            tokenizer=words, transformer=transformer,
        )
    )


def kandinsky6(seed=0):
    from diffusers import (
        Kandinsky6TI2VAPipeline,
        Kandinsky6Transformer3DModel,
        MMAudioVAE,
        MMAudioVocoder,
    )

    parts.seeded(seed)
    processor = parts.qwen_processor()
    transformer = Kandinsky6Transformer3DModel(
        in_text_dim=32, in_text_dim2=16, time_dim=16, model_dim=16, ff_dim=32, num_text_blocks=2,
        num_visual_blocks=2, axes_dims=(4, 2, 2), in_audio_dim=4, out_audio_dim=4, ca_rope=True,
        cross_gates=True, fix_modulation=True, visual_token_type_num_embeddings=2,
    )
    sound = MMAudioVAE(
        mel_bins=8, latent_channels=4, hidden_channels=8, channel_multipliers=(1, 2),
        layers_per_block=1,
    )
    voice = MMAudioVocoder(
        num_mels=8, upsample_initial_channel=64, resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1,),),
    )
    return parts.quiet(
        Kandinsky6TI2VAPipeline(
            transformer=transformer, vae=hunyuan_video_vae(), tokenizer=processor,
            text_encoder=parts.qwen25_vl(processor.tokenizer, 32), text_encoder_2=parts.clip(16),
            tokenizer_2=parts.clip_tokenizer(), scheduler=parts.flow(shift=7.0),
            audio_vae=sound, vocoder=voice,
        )
    )


def wuerstchen_prior(seed=0):
    from diffusers import DDPMWuerstchenScheduler, WuerstchenPriorPipeline
    from diffusers.pipelines.deprecated.wuerstchen import WuerstchenPrior

    parts.seeded(seed)
    prior = WuerstchenPrior(c_in=4, c=16, c_cond=32, c_r=16, depth=2, nhead=2, dropout=0.0)
    with torch.no_grad():  # what it says is divided by one less half of this, which nears nought
        prior.out[1].weight.mul_(0.02)
    return parts.quiet(
        WuerstchenPriorPipeline(
            tokenizer=parts.clip_tokenizer(), text_encoder=parts.clip(32), prior=prior,
            scheduler=DDPMWuerstchenScheduler(),
        )
    )


def _unclip_prior(width):
    from diffusers import PriorTransformer

    prior = PriorTransformer(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, embedding_dim=width
    )
    torch.nn.init.ones_(prior.clip_std)  # noughts in the class
    return prior


def kandinsky22_prior(seed=0, width=256):
    from diffusers import KandinskyV22PriorPipeline, UnCLIPScheduler

    parts.seeded(seed)
    eye = tf.CLIPVisionConfig(
        hidden_size=16, image_size=32, projection_dim=width, num_attention_heads=2,
        num_hidden_layers=1, patch_size=16, intermediate_size=16,
    )
    return parts.quiet(
        KandinskyV22PriorPipeline(
            prior=_unclip_prior(width), tokenizer=parts.clip_tokenizer(),
            text_encoder=parts.clip(width, tf.CLIPTextModelWithProjection),
            image_encoder=tf.CLIPVisionModelWithProjection(eye),
            image_processor=tf.CLIPImageProcessor(),
            scheduler=UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0),
        )
    )


def cogview3plus(seed=0):
    from diffusers import (
        CogVideoXDDIMScheduler,
        CogView3PlusPipeline,
        CogView3PlusTransformer2DModel,
    )

    parts.seeded(seed)
    transformer = CogView3PlusTransformer2DModel(
        in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2, out_channels=4,
        text_embed_dim=32, time_embed_dim=8, condition_dim=2, pos_embed_max_size=16, sample_size=8,
    )
    return parts.quiet(
        CogView3PlusPipeline(
            tokenizer=parts.t5_tokenizer(), text_encoder=parts.t5(), vae=parts.vae(),
            transformer=transformer,
            scheduler=CogVideoXDDIMScheduler(prediction_type="v_prediction",
                rescale_betas_zero_snr=True, timestep_spacing="trailing"),
        )
    )


def wan_vace(seed=0):
    from diffusers import UniPCMultistepScheduler, WanVACEPipeline, WanVACETransformer3DModel

    parts.seeded(seed)
    transformer = WanVACETransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=32, freq_dim=32, ffn_dim=32,
        num_layers=3, rope_max_seq_len=32, vace_layers=[0, 2],
    )
    return parts.quiet(
        WanVACEPipeline(
            tokenizer=parts.t5_tokenizer(), text_encoder=parts.t5(kind=tf.UMT5EncoderModel),
            vae=parts.wan_vae(), transformer=transformer,
            scheduler=UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
        )
    )


def motif_video(seed=0):
    from diffusers import MotifVideoPipeline, MotifVideoTransformer3DModel
    from diffusers.guiders import AdaptiveProjectedGuidance
    from transformers.models.t5gemma2.configuration_t5gemma2 import T5Gemma2EncoderConfig
    from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2Encoder

    parts.seeded(seed)
    words = parts.gemma_tokenizer()
    config = T5Gemma2EncoderConfig(
        text_config={**parts.llm(16, 2, parts.size(words)), "head_dim": 8, "dropout_rate": 0.0},
        vision_config={
            "hidden_size": 16, "image_size": 28, "patch_size": 14, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 16,
        },
        mm_tokens_per_image=1, image_token_index=len(words) + 2,
    )
    transformer = MotifVideoTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, num_layers=1, num_single_layers=2,
        num_decoder_layers=1, text_embed_dim=16, rope_axes_dim=(4, 4, 4),
        enable_text_cross_attention_dual=True, enable_text_cross_attention_single=True,
    )
    return parts.quiet(
        MotifVideoPipeline(
            scheduler=parts.flow(use_dynamic_shifting=True), vae=parts.wan_vae(),
            text_encoder=T5Gemma2Encoder(config, eoi_token_index=len(words) + 1).eval(),
            tokenizer=words, transformer=transformer, guider=AdaptiveProjectedGuidance(),
        )
    )


def z_image_omni(seed=0):
    from diffusers import ZImageOmniPipeline

    parts.seeded(seed)
    words = parts.qwen_tokenizer()
    eye = tf.Siglip2VisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        patch_size=4, num_patches=16,
    )
    return parts.quiet(
        ZImageOmniPipeline(
            scheduler=parts.flow(), vae=parts.vae(16, 0.1),
            text_encoder=parts.qwen3(words, layers=3), tokenizer=words,
            transformer=_z_image_denoiser(siglip_feat_dim=16), siglip=tf.Siglip2VisionModel(eye),
            siglip_processor=tf.Siglip2ImageProcessor(patch_size=4),
        )
    )


def latent_consistency(seed=0):
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler, UNet2DConditionModel

    parts.seeded(seed)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=16, attention_head_dim=2, time_cond_proj_dim=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    return parts.quiet(
        LatentConsistencyModelPipeline(
            vae=parts.vae(), text_encoder=parts.clip(16), tokenizer=parts.clip_tokenizer(),
            unet=unet, scheduler=LCMScheduler(beta_schedule="scaled_linear"), safety_checker=None,
            feature_extractor=None, requires_safety_checker=False,
        )
    )


def unclip(seed=0):
    from diffusers import UnCLIPPipeline, UnCLIPScheduler, UNet2DConditionModel, UNet2DModel
    from diffusers.pipelines.deprecated.unclip import UnCLIPTextProjModel

    parts.seeded(seed)
    unet = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 8}
    decoder = UNet2DConditionModel(
        sample_size=16, in_channels=3, out_channels=6, cross_attention_dim=16,
        class_embed_type="identity", mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), **unet,
    )
    finer = [
        UNet2DModel(
            sample_size=32, in_channels=6, down_block_types=("ResnetDownsampleBlock2D",) * 2,
            up_block_types=("ResnetUpsampleBlock2D",) * 2, **unet,
        )
        for _ in range(2)
    ]
    return parts.quiet(
        UnCLIPPipeline(
            prior=_unclip_prior(32), decoder=decoder, tokenizer=parts.clip_tokenizer(),
            text_encoder=parts.clip(32, tf.CLIPTextModelWithProjection),
            text_proj=UnCLIPTextProjModel(
                clip_embeddings_dim=32, time_embed_dim=32, cross_attention_dim=16
            ),
            super_res_first=finer[0], super_res_last=finer[1],
            prior_scheduler=UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0),
            decoder_scheduler=UnCLIPScheduler(variance_type="learned_range"),
            super_res_scheduler=UnCLIPScheduler(),
        )
    )


CONTENT = "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}"


def glm_image(seed=0):
    from diffusers import GlmImagePipeline, GlmImageTransformer2DModel
    from transformers.models.glm_image import image_processing_glm_image as pictures

    parts.seeded(seed)
    special = ("<|image|>", "<|grid_bos|>", "<|grid_eos|>")
    words = parts.plain_tokenizer(special=special, side="left")
    words.image_token, words.grid_bos_token = "<|image|>", "<|grid_bos|>"
    words.grid_eos_token = "<|grid_eos|>"
    config = tf.GlmImageConfig(
        text_config={
            **parts.llm(32, 2, parts.size(words)), "vision_vocab_size": 128, "eos_token_id": 127,
            "pad_token_id": words.pad_token_id,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2],
            },
        },
        vision_config={
            "depth": 1, "hidden_size": 32, "num_heads": 2, "image_size": 32, "patch_size": 8,
            "intermediate_size": 32,
        },
        vq_config={"embed_dim": 32, "num_embeddings": 128, "latent_channels": 32},
        image_token_id=words.convert_tokens_to_ids("<|image|>"), image_start_token_id=126,
        image_end_token_id=127,
    )
    reader = tf.GlmImageForConditionalGeneration(config).eval()
    reader.generation_config.eos_token_id = None  # a random model would end too soon
    processor = tf.GlmImageProcessor(
        image_processor=pictures.GlmImageImageProcessor(), tokenizer=words, chat_template=CONTENT
    )
    transformer = GlmImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, text_embed_dim=32, time_embed_dim=16, condition_dim=8,
        prior_vq_quantizer_codebook_size=128,
    )
    vae = parts.vae(4, levels=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    return parts.quiet(
        GlmImagePipeline(
            tokenizer=tf.ByT5Tokenizer(), processor=processor, vae=vae, transformer=transformer,
            text_encoder=parts.t5(32, vocab=400), vision_language_encoder=reader,
            scheduler=parts.flow(),
        )
    )


def flux2_klein_distilled():
    pipeline = flux2_klein()
    pipeline.register_to_config(is_distilled=True)
    return pipeline


BUILDERS: dict[str, Callable[[], DiffusionPipeline]] = {
    build.__name__: build
    for build in (
        kandinsky5_t2i, sana, kandinsky5_t2v, allegro, auraflow, bria,
        bria_fibo, bria_fibo2, chroma, cogvideox, cogview4, cosmos2_t2i, deepfloyd_if,
        dreamlite, flux2, flux2_klein, hidream, hunyuan_dit, hunyuan_image, hunyuan_video,
        hunyuan_video15, ideogram4, kandinsky3, krea2, latte, longcat_image, ltx, lumina,
        lumina2, mochi, nucleus_moe, omnigen, ovis_image, pixart_alpha, prx, prx_pixel,
        qwen_image, qwen_image21, sana_sprint, sana_video, skyreels_v2, stable_cascade_prior,
        wan, z_image, flux2_klein_distilled, kandinsky6, wuerstchen_prior, kandinsky22_prior,
        cogview3plus, wan_vace, motif_video, z_image_omni, latent_consistency,
    )
} | {
    "wan21": lambda: wan(both=False),
    "hunyuan_image_distilled": lambda: hunyuan_image(distilled=True),
}
