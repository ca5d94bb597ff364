"""Whatever is wrapped around a model or put beside its weights, an erasure is of the base's own."""

import tempfile

import pytest
import torch
from diffusers import FirstBlockCacheConfig, UNet2DConditionModel
from diffusers.hooks import apply_group_offloading
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor
from hosts import build_digits_model, build_digits_task, build_tiny_pipeline, build_tiny_task
from peft import LoraConfig, get_peft_model
from test_contract import SIDE, brisk, draw_ghost, erase_tiny, tensors
from test_erasure import changed
from tiny_families import build_family
from torch import nn

from erase import Erasure, methods
from erase.core.delta import DenseDelta
from erase.core.names import named_parameters
from erase.models.family import require_supported
from erase.models.stock import with_components
from erase.pipelines import ErasedStableDiffusionPipeline
from erase.tasks.classification.task import ClassificationTask

LORA = LoraConfig(r=2, target_modules=["to_k", "to_out.0"], init_lora_weights=False)
EDITED = ("unet", "text_encoder")


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")


def wrapped(pipeline, **wraps):
    for name, wrap in wraps.items():
        setattr(pipeline, name, wrap(getattr(pipeline, name)))


def with_lora(pipeline):
    torch.manual_seed(2)
    pipeline.unet.add_adapter(LORA, "style")


def with_compiled_lora(pipeline):
    with_lora(pipeline)
    wrapped(pipeline, unet=compiled)


def with_fused_lora(pipeline):
    with_lora(pipeline)
    pipeline.fuse_lora(["unet"])


def taken_apart(pipeline):
    pipeline.fuse_qkv_projections()
    pipeline.unfuse_qkv_projections()


SERVED = {
    "a LoRA": with_lora,
    "compiled": lambda pipeline: wrapped(pipeline, unet=compiled, text_encoder=compiled),
    "a compiled LoRA": with_compiled_lora,
    "parallel": lambda pipeline: wrapped(pipeline, unet=nn.DataParallel),
    "PEFT's model": lambda pipeline: wrapped(pipeline, unet=lambda u: get_peft_model(u, LORA)),
    "fused and taken apart": taken_apart,
}


@pytest.mark.parametrize("name", SERVED)
def test_what_is_wrapped_is_erased_as_the_base_itself(name):
    base, pipeline = build_tiny_pipeline(), build_tiny_pipeline()
    SERVED[name](pipeline)
    task = build_tiny_task(pipeline, (), SIDE)
    own = named_parameters({part: getattr(base, part) for part in EDITED})
    assert task.editable().keys() == own.keys()
    for method in ("projection", "salun"):
        erasure = methods()[method](task, brisk(methods()[method].config()))
        before = {name: weight.clone() for name, weight in own.items()}
        with erasure.apply(base.components), erasure.apply(pipeline.components):
            assert changed(before, task.editable()) == erasure.deltas.keys() != set()
            assert not changed(own, task.editable())
        assert not changed(before, task.editable())


def test_what_is_compiled_in_place_and_has_drawn_is_heard_all_the_same():
    pipeline, found = build_tiny_pipeline(), []
    for compiled_too in (False, True):
        if compiled_too:
            pipeline.unet.mid_block.compile(backend="eager")
            draw_ghost(pipeline)
        task = build_tiny_task(pipeline, (), SIDE)
        method = methods()["projection"]
        found.append(method(task, method.config(targets=("unet",))).deltas.keys())
    assert found[0] == found[1] != set()


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel])
def test_a_wrapped_classifier_is_erased_as_itself(wrap):
    base, task = build_digits_model(), build_digits_task(build_digits_model())
    erasure = methods()["projection"](ClassificationTask(wrap(base), task.dataset, task.forget, 10))
    before = {name: weight.clone() for name, weight in task.parameters().items()}
    with erasure.apply(task.components), erasure.apply({"model": wrap(base)}):
        assert changed(before, task.parameters()) == erasure.deltas.keys()
        assert not changed(named_parameters({"model": base}), task.parameters())


def with_custom_diffusion(pipeline):
    processors = {
        name: CustomDiffusionAttnProcessor(True, False, hidden_size=16, cross_attention_dim=16)
        if "attn2" in name
        else processor
        for name, processor in pipeline.unet.attn_processors.items()
    }
    pipeline.unet.set_attn_processor(processors)


def in_bytes(pipeline):
    for weight in pipeline.unet.parameters():
        weight.data = weight.data.to(torch.float8_e4m3fn)


def offloaded(pipeline):
    wrapped(pipeline, unet=lambda unet: unet.to("meta"))


def in_files(pipeline):
    from_disk = {"offload_to_disk_path": tempfile.mkdtemp(), "onload_device": torch.device("cpu")}
    for part in (pipeline.unet, pipeline.text_encoder):
        apply_group_offloading(part, offload_type="leaf_level", **from_disk)


REFUSED = {
    "attention is fused": lambda pipeline: pipeline.fuse_qkv_projections(),
    "weights of its own": with_custom_diffusion,
    "LoRA is fused": with_fused_lora,
    "is quantized": in_bytes,
    "is offloaded to files": in_files,
    "is offloaded": offloaded,
}


@pytest.mark.parametrize("said", REFUSED)
def test_weights_that_decide_nothing_are_refused_at_every_door(said, tmp_path):
    erasure, _ = erase_tiny("projection", "both")
    erasure.save_pretrained(tmp_path / "erasure")
    pipeline = ErasedStableDiffusionPipeline.from_pipe(build_tiny_pipeline())
    REFUSED[said](pipeline)
    doors = (
        lambda: build_tiny_task(pipeline, (), SIDE),
        lambda: erasure.apply(pipeline.components),
        lambda: pipeline.load_erasure(tmp_path / "erasure"),
        lambda: erasure.export_pipeline(pipeline, tmp_path / "exported"),
    )
    for door in doors[: 2 if said == "is offloaded" else 4]:
        with pytest.raises(ValueError, match=f"{said}|An adapter is loaded"):
            door()
    assert not (tmp_path / "exported").exists()


def test_no_stock_folder_is_written_of_a_pipeline_with_an_adapter(tmp_path):
    erasure, _ = erase_tiny("projection", "both")
    pipeline = ErasedStableDiffusionPipeline.from_pipe(build_tiny_pipeline())
    with_lora(pipeline)
    for door in (lambda: erasure.export_pipeline(pipeline, tmp_path / "one"),
                 lambda: pipeline.save_pretrained(tmp_path / "two")):  # fmt: skip
        with pytest.raises(ValueError, match="An adapter is loaded"):
            door()
    with pytest.raises(ValueError, match="An adapter is loaded"):
        methods()["salun_lora"](build_tiny_task(pipeline, (), SIDE))
    assert not list(tmp_path.iterdir())


def of_classes(pipeline):
    config = {n: v for n, v in pipeline.unet.config.items() if not n.startswith("_")}
    pipeline.unet = UNet2DConditionModel(**config | {"num_class_embeds": 3})


def answering_from_a_cache(pipeline):
    pipeline.transformer.enable_cache(FirstBlockCacheConfig())


def told_of_pictures(pipeline):
    pipeline.unet.register_to_config(encoder_hid_dim_type="ip_image_proj")


LACKING = [
    ("sd1", ["text_encoder"]), ("sdxl", ["text_encoder", "tokenizer"]), ("sd1", ["vae"]),
    ("sd3", ["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"]),
    ("sd3", ["tokenizer_3"]), ("flux", ["text_encoder_2"]), ("pixart", ["tokenizer"]),
]  # fmt: skip


def test_pipelines_that_lack_a_part_or_ask_for_more_are_refused():
    for family, none in LACKING:
        pipeline = with_components(build_family(family), {})
        for part in none:
            setattr(pipeline, part, None)
        with pytest.raises(ValueError, match=f"has no .*{none[-1]}"):
            require_supported(pipeline)
    for family, change, said in (
        ("sd1", of_classes, "asks for a class"),
        ("sd1", told_of_pictures, "IP-Adapter"),
        ("flux", answering_from_a_cache, "from a cache"),
    ):
        pipeline = build_family(family)
        change(pipeline)
        with pytest.raises(ValueError, match=said):
            require_supported(pipeline)
    none = dict.fromkeys(("text_encoder_3", "tokenizer_3"))
    build_tiny_task(with_components(build_family("sd3"), none), (), SIDE)


def learn_a_word(pipeline):
    pipeline.load_textual_inversion({"<boo>": torch.ones(1, 16)}, token="<boo>")


def forget_a_word(pipeline):
    learn_a_word(pipeline)
    pipeline.unload_textual_inversion()


def lose_a_layer(pipeline):
    pipeline.unet.conv_in = nn.Identity()


def widen_a_layer(pipeline):
    pipeline.unet.conv_in = nn.Conv2d(4, 9, 3)


def renew_a_weight(pipeline):
    pipeline.unet.conv_in.weight = nn.Parameter(torch.zeros(8, 4, 3, 3))


def replace_the_unet(pipeline):
    pipeline.unet = UNet2DConditionModel.from_config(pipeline.unet.config)


def cast(pipeline):
    pipeline.unet.half()


GONE = (lose_a_layer, widen_a_layer)  # in an order that all processes share
KEPT = (learn_a_word, forget_a_word, renew_a_weight, replace_the_unet, with_lora, taken_apart, cast)


@pytest.mark.parametrize("change", [*KEPT, *GONE])
@pytest.mark.parametrize("loaded", [False, True])
def test_the_base_comes_back_whatever_was_done_to_the_pipeline_meanwhile(change, loaded, tmp_path):
    pipeline = ErasedStableDiffusionPipeline.from_pipe(build_tiny_pipeline())
    modules = {part: getattr(pipeline, part) for part in EDITED}
    before = {name: weight.clone() for name, weight in named_parameters(modules).items()}
    erasure = Erasure({n: DenseDelta(torch.full_like(w, 0.1)) for n, w in before.items()})
    if loaded:
        erasure.save_pretrained(tmp_path)
        pipeline.load_erasure(tmp_path)
        back = pipeline.unload_erasure
    else:
        back = erasure.apply(pipeline.components).revert
    change(pipeline)
    standing = {name: weight.clone() for name, weight in pipeline.unet.state_dict().items()}
    if change in GONE:
        with pytest.raises(ValueError, match=r"conv_in\.weight cannot be: gone, or"):
            back()
    else:
        back()
    now = named_parameters(modules)
    lost = {"unet.conv_in.weight", "unet.conv_in.bias"} if change in GONE else set()
    for name, weight in before.items():
        assert name in lost or torch.equal(now[name][: len(weight)], weight.to(now[name].dtype)), (
            name
        )
    if change is replace_the_unet:
        assert not changed(standing, pipeline.unet.state_dict())
    if change is learn_a_word:
        assert now["text_encoder.embeddings.token_embedding.weight"][-1].eq(1).all()


def test_what_others_changed_meanwhile_is_not_lost_without_a_word(tmp_path, caplog):
    erasure, _ = erase_tiny("projection", "both")
    erasure.save_pretrained(tmp_path)
    pipeline = ErasedStableDiffusionPipeline.from_pipe(build_tiny_pipeline())
    before = tensors(pipeline)
    for _ in range(2):
        pipeline.load_erasure(tmp_path)
        pipeline.set_erasure_scale(0.5)
        pipeline.unload_erasure()
        assert "by others" not in caplog.text
    pipeline.load_erasure(tmp_path)
    with_fused_lora(pipeline)
    pipeline.unload_lora_weights()
    pipeline.unload_erasure()
    assert "by others" in caplog.text
    assert all(torch.equal(tensors(pipeline)[name], before[name]) for name in erasure.deltas)


def test_what_cannot_be_taken_back_yet_is_left_as_it_is(tmp_path):
    """Fused weights hold the erasure too: nothing is touched until they are taken apart."""
    erasure, _ = erase_tiny("projection", "both")
    erasure.save_pretrained(tmp_path)
    pipeline = ErasedStableDiffusionPipeline.from_pipe(build_tiny_pipeline())
    before = tensors(pipeline)
    for fuse, apart in (
        (lambda p: p.fuse_qkv_projections(), lambda p: p.unfuse_qkv_projections()),
        (with_fused_lora, lambda p: p.unfuse_lora(["unet"])),
    ):
        pipeline.load_erasure(tmp_path)
        fuse(pipeline)
        erased = tensors(pipeline)
        with pytest.raises(ValueError, match="is fused"):
            pipeline.unload_erasure()
        assert pipeline.list_erasures() == {"default": 1.0}
        assert not changed(erased, tensors(pipeline))
        apart(pipeline)
        pipeline.unload_erasure()
        own = named_parameters({part: getattr(pipeline, part) for part in EDITED})
        assert all(torch.allclose(own[name], before[name], atol=1e-6) for name in erasure.deltas)
