import json
import subprocess
import sys

import pytest
import torch

from erase.bundled import EMOJI, FOLDER, JUDGE
from erase.bundled.canvas import EmojiCanvas, caption, random_placement
from erase.catalogue import Catalogue
from erase.evaluate.clip import ClipJudge
from erase.runner import judge_templates


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue.of_model(EMOJI)


@pytest.fixture(scope="module")
def judge(catalogue) -> ClipJudge:
    return ClipJudge(f"local-dir:{JUDGE}", judge_templates(catalogue))


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


def test_the_judge_names_real_drawings_it_has_not_been_shown_so(judge, catalogue):
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


PLAIN = """
import sys
sys.modules["erase"] = None
import torch
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1], local_files_only=True)
seeds = [torch.Generator().manual_seed(i) for i in range(8)]
prompts = [f"a {name} in {style} style" for name in ("pizza", "rocket", "sunflower", "panda")
           for style in ("glossy", "ink")]
pictures = pipeline(prompts, generator=seeds, num_inference_steps=20, guidance_scale=4.0,
                    output_type="pt").images
torch.save(pictures.float(), sys.argv[2])
"""


def test_plain_diffusers_draws_what_it_is_asked_for(judge, catalogue, tmp_path):
    command = [sys.executable, "-c", PLAIN, str(EMOJI), str(tmp_path / "pictures.pt")]
    subprocess.run(command, check=True, cwd=tmp_path)
    pictures = torch.load(tmp_path / "pictures.pt", weights_only=True)
    seen = judge.classify(judge.embed(pictures), "object", list(catalogue.objects))
    assert seen == [name for name in ("pizza", "rocket", "sunflower", "panda") for _ in "ab"]
