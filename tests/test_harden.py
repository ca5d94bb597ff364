import dataclasses
import shutil

import pytest
import torch
from hosts import CATALOGUE, build_tiny_pipeline, build_tiny_task
from PIL import Image
from test_erasure import changed
from test_learned import BUILDERS, build_task

from erase.core.delta import DenseDelta
from erase.core.names import filter_names
from erase.erasure.erasure import Erasure
from erase.methods import methods
from erase.methods.harden import HardenConfig, TaughtTask, harden, make_noisy_
from erase.models.opening import Model
from erase.prompts.request import EraseRequest
from erase.runs.erase import HardenRun, RunConfig, run, run_config
from erase.runs.erase import harden as harden_folder
from erase.tasks.diffusion.blank_words import blank_words_
from erase.tasks.diffusion.config import DiffusionTaskConfig
from erase.tasks.diffusion.relearning import DenoiserRelearning
from erase.tasks.diffusion.task import DiffusionTask
from erase.training.checkpoint import checkpoints_in
from erase.training.config import TrainingConfig
from erase.training.loop import step_number, step_seed
from erase.training.relearning import relearned

BRISK = TrainingConfig(max_train_steps=4, learning_rate=1e-3)
BOTH = ("unet", "text_encoder")


def brisk(**options) -> HardenConfig:
    return HardenConfig(training=BRISK, **options)


def weights_of(task) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in task.editable().items()}


@pytest.mark.parametrize(("share", "size"), [(0.25, 1.0), (0.7, 0.25), (1.0, 2.0)])
def test_noise_takes_its_share_of_a_weight_in_the_weights_own_deviations(share, size):
    before = torch.linspace(-3, 5, 40_000).view(200, 200)
    weight = before.clone()
    make_noisy_({"a": weight}, share, size, seed=0)
    noise = (weight - (1 - share) * before) / share
    assert torch.allclose(noise.std(), size * before.std(), rtol=0.02)
    assert noise.mean().abs() < 0.05 * size
    assert torch.corrcoef(torch.stack([noise.flatten(), before.flatten()]))[0, 1].abs() < 0.02


def test_noise_follows_from_the_seed():
    one, two, other = (torch.eye(8) for _ in range(3))
    make_noisy_({"a": one}, 0.5, 1.0, seed=1)
    make_noisy_({"a": two}, 0.5, 1.0, seed=1)
    make_noisy_({"a": other}, 0.5, 1.0, seed=2)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_only_chosen_matrices_are_noised_and_the_base_is_left(tiny_pipeline):
    task = build_tiny_task(tiny_pipeline, BOTH)
    before = weights_of(task)
    still = TrainingConfig(max_train_steps=1, learning_rate=1e-30)
    config = HardenConfig(layers=("unet.mid_block*",), words="keep", training=still)
    erasure = harden(task, config)
    assert not changed(before, weights_of(task))
    noised = {n for n, w in filter_names(before, ["unet.mid_block*"]).items() if w.ndim > 1}
    reads_text = set(methods()["projection"](task).deltas)
    assert set(erasure.deltas) == noised | reads_text


def test_a_student_that_learns_nothing_is_the_noised_teacher(tiny_pipeline):
    task = build_tiny_task(tiny_pipeline)
    still = TrainingConfig(max_train_steps=1, learning_rate=1e-30)
    teacher = methods()["projection"](task)
    student = harden(task, HardenConfig(noise=0.5, size=1.0, words="keep", training=still))
    name = "unet.conv_out.weight"
    base = weights_of(task)[name]
    noise = 2 * student.deltas[name].dense() + base
    assert torch.allclose(noise.std(), base.std(), rtol=0.2)
    assert name not in teacher.deltas


def test_only_words_that_no_other_prompt_holds_are_blanked(tiny_pipeline):
    task = build_tiny_task(tiny_pipeline, BOTH)
    table = tiny_pipeline.text_encoder.get_input_embeddings().weight
    before = table.detach().clone()
    assert blank_words_(task) == {"text_encoder": ["boo</w>", "ghost</w>"]}
    tokenizer = tiny_pipeline.tokenizer
    rows = tokenizer.convert_tokens_to_ids(["boo</w>", "ghost</w>"])
    assert torch.allclose(table[rows], before.mean(0).expand(2, -1))
    others = [row for row in range(len(table)) if row not in rows]
    assert torch.equal(table[others], before[others])


def test_words_are_kept_where_the_text_encoder_may_not_change(tiny_pipeline):
    erasure = harden(build_tiny_task(tiny_pipeline), brisk())
    assert erasure.recipe["blanked_words"] == {}
    assert all(name.startswith("unet.") for name in erasure.deltas)


def test_the_student_comes_to_answer_as_the_teacher(tiny_pipeline):
    task = build_tiny_task(tiny_pipeline, BOTH)
    teacher = methods()["projection"](task)
    with teacher.apply(task.components):
        wiser = task.frozen_copy(task.editable())
    batch = next(iter(task.retain_batches(0)))

    def distance(steps: int) -> float:
        training = TrainingConfig(max_train_steps=steps, learning_rate=3e-3)
        with harden(task, HardenConfig(training=training)).apply(task.components):
            return task.divergence(batch, wiser).item()

    assert distance(40) < 0.75 * distance(1)


def test_resumed_equals_uninterrupted(tmp_path, monkeypatch):
    config = dataclasses.replace(brisk(uses=2, pictures=4), training=dataclasses.replace(
        BRISK, checkpointing_steps=2, checkpoints_total_limit=3))  # fmt: skip
    whole = harden(build_tiny_task(build_tiny_pipeline(), BOTH), config)
    with checkpoints_in(tmp_path):
        harden(build_tiny_task(build_tiny_pipeline(), BOTH), config)
        shutil.rmtree(tmp_path / "checkpoint-4")
        resumed = harden(build_tiny_task(build_tiny_pipeline(), BOTH), config)
        with pytest.raises(ValueError, match="another training's"):
            harden(
                build_tiny_task(build_tiny_pipeline(), BOTH), dataclasses.replace(config, noise=0.7)
            )
    assert whole.deltas.keys() == resumed.deltas.keys()
    for name, delta in whole.deltas.items():
        assert torch.equal(delta.dense(), resumed.deltas[name].dense()), name


def taught(task, config: HardenConfig) -> TaughtTask:
    return TaughtTask(task, task.frozen_copy(task.editable()), config, BRISK)


def test_a_batch_follows_from_its_step_alone_and_its_window_moves_on(tiny_pipeline):
    config = HardenConfig(pictures=2, uses=1, empty_share=0.01, training=BRISK)
    task = build_tiny_task(tiny_pipeline)
    one, other = taught(task, config), taught(task, config)
    seeds = [step_seed(task.seed, step) + 1 for step in range(4)]
    batches = [next(one.retain_batches(seed)) for seed in seeds]
    assert torch.equal(batches[3].latents, next(other.retain_batches(seeds[3])).latents)
    assert not torch.equal(batches[0].latents.unique(dim=0), batches[3].latents.unique(dim=0))


def test_a_step_is_known_by_either_of_its_seeds():
    for step in (0, 1, 7_001):
        assert step_number(3, step_seed(3, step)) == step_number(3, step_seed(3, step) + 1) == step


def test_forget_prompts_take_their_share_of_the_pictures(tiny_pipeline):
    task = build_tiny_task(tiny_pipeline)
    forget = {prompt.text for prompt in task.prompts.forget}
    assert not forget & set(taught(task, HardenConfig(forget_share=0)).texts)
    some = taught(task, HardenConfig(forget_share=0.25, pictures=8)).texts
    assert sum(text in forget for text in some) == len(some) // 4


def test_a_forget_prompt_learns_the_answer_to_its_anchor_if_asked(tiny_pipeline):
    task = build_tiny_task(tiny_pipeline)
    anchors = {prompt.text: prompt.anchor for prompt in task.prompts.forget}
    for answers in ("anchor", "erased"):
        student = taught(task, brisk(answers=answers, forget_share=0.5))
        batch = next(student.retain_batches(step_seed(task.seed, 0)))
        assert set(anchors) & set(batch.prompts)
        assert set(batch.prompts) - set(anchors)
        answered = [anchors.get(text, text) for text in batch.prompts]
        assert batch.anchors == (answered if answers == "anchor" else batch.prompts)


def test_answers_to_anchors_need_no_erasure(tiny_pipeline):
    still = TrainingConfig(max_train_steps=1, learning_rate=1e-30)
    config = HardenConfig(answers="anchor", layers=("unet.mid_block*",), training=still)
    erasure = harden(build_tiny_task(tiny_pipeline), config)
    assert all(name.startswith("unet.mid_block") for name in erasure.deltas)
    assert erasure.recipe["teacher"] == {}


def test_answers_to_anchors_are_the_bases_and_not_the_erased_models(tiny_pipeline, tmp_path):
    task, name = build_tiny_task(tiny_pipeline, BOTH), "unet.conv_out.weight"
    weight = task.editable()[name]
    Erasure({name: DenseDelta(-0.9 * weight.detach())}).save_pretrained(tmp_path)
    base, batch = task.frozen_copy(task.editable()), next(iter(task.retain_batches(0)))

    def distance(answers: str) -> float:
        training = TrainingConfig(max_train_steps=60, learning_rate=3e-3)
        config = HardenConfig(str(tmp_path), answers=answers, noise=0.01, training=training)
        with harden(task, config).apply(task.components):
            return task.divergence(batch, base).item()

    assert distance("anchor") < 0.5 * distance("erased")


@pytest.mark.parametrize("other", [{"answers": "anchor"}, {"forget_share": 0.5}, {"uses": 8}])
def test_another_way_of_teaching_does_not_go_on_from_its_checkpoints(
    tiny_pipeline, tmp_path, other
):
    Erasure({}).save_pretrained(tmp_path / "none")
    config = brisk(folder=str(tmp_path / "none"))
    with checkpoints_in(tmp_path / "state"):
        harden(build_tiny_task(tiny_pipeline), config)
        with pytest.raises(ValueError, match="another training's"):
            harden(build_tiny_task(tiny_pipeline), dataclasses.replace(config, **other))


@pytest.mark.parametrize("family", ["sd", "wan", "dreamlite"])
def test_pictures_of_a_folder_take_the_place_of_the_teachers(family, tmp_path):
    for number, color in enumerate(["red", "blue"]):
        Image.new("L", (20, 24), color).save(tmp_path / f"{number}.png")
    task = (
        build_tiny_task(build_tiny_pipeline()) if family == "sd" else build_task(BUILDERS[family]())
    )
    shown = taught(task, HardenConfig(retain_folder=str(tmp_path)))
    batch = next(shown.retain_batches(step_seed(task.seed, 0)))
    assert len(batch.latents.unique(dim=0)) <= 2
    assert not shown._drawn


@pytest.fixture
def folder(tiny_pipeline, tmp_path):
    """A projection's folder, and the model it is of."""
    model = Model("tiny", tiny_pipeline, CATALOGUE)
    config = RunConfig(EraseRequest(["ghost"]), "tiny", "projection", evaluate=False)
    run(config, tmp_path / "teacher", model)
    return tmp_path / "teacher", model


def small(folder, **options) -> HardenRun:
    task = DiffusionTaskConfig(batch_size=2, generation_steps=2)
    return HardenRun(str(folder), harden=brisk(), task=task, evaluate=False, **options)


def test_a_folder_is_hardened_and_left_as_it_was(folder, tmp_path):
    folder, model = folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    harden_folder(small(folder), tmp_path / "student", model)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    student = Erasure.from_pretrained(tmp_path / "student")
    assert student.recipe["teacher"]["method"] == "projection"
    assert student.facts.concepts == ["ghost"]
    assert student.facts.method == "harden"
    with student.apply(model.pipeline.components):
        pass
    with pytest.raises(ValueError, match="holds another run"):
        harden_folder(small(folder), folder, model)


def test_effort_is_a_share_of_retrainings_pictures(tiny_pipeline):
    task = build_tiny_task(tiny_pipeline)
    config = HardenConfig(effort=0.5, retraining_pictures=100)
    assert methods()["harden"].needs(task, config).training.max_train_steps == 25


def test_one_number_of_effort_is_enough(folder):
    asked = run_config(small(folder[0], effort=0.3))
    assert asked.method_config.effort == 0.3
    assert asked.request.concepts == ("ghost",)


@pytest.mark.parametrize(("asked", "size"), [(0, 16), (32, 32)])
def test_what_was_made_at_a_size_is_hardened_at_it_unless_another_is_asked(
    tiny_pipeline, tmp_path, asked, size
):
    task = DiffusionTaskConfig(size=16)
    config = RunConfig(EraseRequest(["ghost"]), "tiny", "uce", task=task, evaluate=False)
    run(config, tmp_path / "ghost", Model("tiny", tiny_pipeline, CATALOGUE))
    hardened = run_config(HardenRun(str(tmp_path / "ghost"), task=DiffusionTaskConfig(size=asked)))
    assert hardened.task.size == size


def test_what_cannot_be_hardened_is_one_sentence(folder, tmp_path):
    folder, model = folder
    with pytest.raises(ValueError, match="named already; leave it out"):
        HardenRun(str(folder), harden=HardenConfig(folder="other"))
    with pytest.raises(ValueError, match="not a readable erasure folder"):
        run_config(HardenRun(str(tmp_path)))
    task = build_tiny_task(model.pipeline)
    with pytest.raises(ValueError, match=r"No matrix of unet.*widen"):
        harden(task, brisk(layers=("vae.*",)))
    with pytest.raises(ValueError, match="give a share"):
        HardenConfig(noise=1.5)
    other = build_tiny_pipeline()
    with torch.no_grad():
        for weight in other.unet.parameters():
            weight.mul_(1.5)
    with pytest.raises(ValueError, match="differs from the base"):
        harden(build_tiny_task(other), brisk(folder=str(folder)))


def test_what_is_relearned_is_drawn_by_the_base_and_no_longer_teaches_the_concept(tiny_pipeline):
    plain = build_tiny_task(tiny_pipeline, BOTH)
    _, shown, _ = plain._sets.samples(plain._shown)
    teacher = methods()["projection"](plain)
    training = TrainingConfig(max_train_steps=40, learning_rate=3e-3)

    def error_once_relearned(steps: int) -> float:
        config = dataclasses.replace(plain.config, relearning=steps, relearning_rate=1e-2)
        task = DiffusionTask(tiny_pipeline, plain.prompts, CATALOGUE.sampling, config)
        student = harden(task, HardenConfig(training=training))
        if steps:
            assert torch.equal(task._sets.samples(task._shown)[1], shown)
        with teacher.apply(task.components):
            wiser = task.frozen_copy(task.editable())
        batch = next(iter(plain.forget_batches(0)))
        attack = DenoiserRelearning(plain.denoiser, 2, 1e-2)
        with student.apply(task.components), relearned(plain, attack, batch):
            return task.divergence(batch, wiser).item()

    assert error_once_relearned(2) < error_once_relearned(0)


@pytest.mark.parametrize("adversary", ["prefix", "word", "states", "target"])
def test_an_adversary_takes_part(tiny_pipeline, adversary):
    plain = build_tiny_task(tiny_pipeline, BOTH)
    config = dataclasses.replace(plain.config, adversary=adversary, adversary_steps=1)
    against = DiffusionTask(tiny_pipeline, plain.prompts, CATALOGUE.sampling, config)
    with_it, without = (harden(task, brisk()).deltas for task in (against, plain))
    assert not torch.equal(
        with_it["unet.conv_out.weight"].dense(), without["unet.conv_out.weight"].dense()
    )
