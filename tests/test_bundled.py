import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from emoji.canvas import EmojiCanvas, caption, random_placement
from emoji.diffusion import build_catalogue
from emoji.single_stream import STYLES, build_pipeline, flow_loss, objects_of

from erase.bundled import EMOJI, FOLDER, JUDGE
from erase.evaluate.pictures.clip import ClipJudge
from erase.evaluate.pictures.judges import judge_templates
from erase.models.learned import learned
from erase.models.opening import load_model
from erase.prompts.catalogue import Catalogue
from erase.tasks.diffusion.sampling import draw


@pytest.fixture(scope="module")
def judge() -> ClipJudge:
    return ClipJudge(f"local-dir:{JUDGE}", judge_templates(build_catalogue(EmojiCanvas())))


def test_the_canvas_is_whole_and_small():
    canvas = EmojiCanvas()
    assert (len(canvas.objects), len(canvas.styles), len(canvas)) == (142, 8, 1136)
    assert len(canvas.core_objects) == 64
    atlas = sum(path.stat().st_size for path in (FOLDER / "data").iterdir())
    assert atlas < 8_000_000
    synonyms = [word for words in canvas.synonyms.values() for word in words]
    assert len(synonyms) == len(set(synonyms))
    assert not set(synonyms) & set(canvas.objects)


def test_licences_name_every_set():
    text = (FOLDER / "LICENSES.md").read_text()
    for style in EmojiCanvas().styles:
        assert f"| {style} |" in text
    for licence in ("Apache-2.0", "MIT", "CC-BY-4.0", "CC-BY-SA-4.0"):
        assert licence in text


def test_rendering_places_a_drawing_on_its_background():
    canvas = EmojiCanvas(["pizza"], ["noto"])
    placement, names = random_placement(16, torch.Generator().manual_seed(0))
    pictures = canvas.render(torch.zeros(16, dtype=torch.long), placement)
    assert pictures.shape == (16, 3, 64, 64)
    assert torch.allclose(pictures[:, :, 0, 0], placement.background, atol=1e-5)
    assert caption(canvas.cells[0], "{a} {object}", names[0]).startswith("a pizza")


def test_the_judge_names_objects_and_styles_of_unseen_augmentations(judge):
    canvas = EmojiCanvas()
    generator = torch.Generator().manual_seed(12345)
    cells = torch.randperm(len(canvas), generator=generator)[:200]
    placement, _ = random_placement(len(cells), generator)
    pictures = canvas.render(cells, placement)
    truth = [canvas.cells[index] for index in cells.tolist()]
    embeddings = judge.embed(pictures)
    objects = judge.classify(embeddings, "object", canvas.objects)
    styles = judge.classify(embeddings, "style", canvas.styles)
    assert sum(o == cell.object for o, cell in zip(objects, truth, strict=True)) >= 196
    assert sum(s == cell.style for s, cell in zip(styles, truth, strict=True)) >= 196


def test_the_pipeline_draws_what_it_is_asked_for(judge):
    model = load_model("emoji")
    objects = ["pizza", "rocket", "sunflower", "panda", "ghost", "guitar", "house", "skull"]
    prompts = [
        model.catalogue.prompt(object_, style)
        for object_, style in zip(objects, model.catalogue.styles, strict=True)
    ]
    pictures = draw(model.pipeline, prompts, range(8), model.sampling)
    seen = judge.classify(judge.embed(pictures), "object", model.catalogue.objects)
    assert sum(a == b for a, b in zip(seen, objects, strict=True)) >= 7


def test_the_pipeline_folder_is_small_and_has_its_papers():
    size = sum(path.stat().st_size for path in EMOJI.rglob("*") if path.is_file())
    assert size < 45_000_000
    assert {path.suffix for path in EMOJI.rglob("*") if path.is_file()} <= {
        ".json",
        ".md",
        ".safetensors",
    }
    assert "## Limits" in (EMOJI / "README.md").read_text()
    assert json.loads((EMOJI / "model_index.json").read_text())["_class_name"] == (
        "StableDiffusionPipeline"
    )


def test_stock_diffusers_opens_the_pipeline():
    pipeline = StableDiffusionPipeline.from_pretrained(EMOJI, local_files_only=True)
    picture = pipeline(
        "a glossy style pizza on a yellow background", num_inference_steps=20, guidance_scale=4.0,
        generator=torch.Generator().manual_seed(0), output_type="pt",
    ).images  # fmt: skip
    assert picture.shape == (1, 3, 64, 64)
    red, green, blue = picture[0, :, :4].mean((1, 2))
    assert min(red, green) > blue + 0.2


def test_the_catalogue_lists_what_the_pipeline_was_trained_on():
    catalogue, canvas = Catalogue.of_model(EMOJI), EmojiCanvas()
    assert set(catalogue.objects) >= set(canvas.core_objects)
    assert list(catalogue.styles) == canvas.styles


def test_the_single_stream_model_hears_text_alone_before_its_shared_blocks():
    canvas = EmojiCanvas()
    assert len(objects_of(canvas)) == 32
    assert "ghost" in objects_of(canvas)
    assert set(STYLES) <= set(canvas.styles)
    torch.manual_seed(0)
    pipeline = build_pipeline(EMOJI)
    for name, weight in pipeline.transformer.named_parameters():
        if "adaLN" in name or "all_final_layer" in name:  # an untrained one hears nothing
            torch.nn.init.normal_(weight, std=0.1)
    known = learned(pipeline)
    assert known.predicts == "velocity to the picture"
    assert [*known.enters] == ["transformer.cap_embedder.1"]
    heard = (*known.text, *known.timed)
    assert heard
    assert not any("transformer.layers" in name for name in heard)
    states, _ = pipeline.encode_prompt(["a ghost", ""], "cpu", False, max_sequence_length=32)
    latents, generator = torch.randn(2, 8, 16, 16), torch.Generator().manual_seed(0)
    flow_loss(pipeline.transformer, latents, states, generator).backward()
    entry = pipeline.transformer.cap_embedder[1].weight.grad
    assert entry is not None
    assert entry.abs().sum() > 0
