"""All that erase computes, at its smallest: methods, attacks, judges and the other commands."""

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from hosts import build_digits_task, digits, trained_digits_model
from tiny_families import SIDE, build_family
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision.transforms.functional import to_pil_image

from erase import ClassificationTask
from erase.app.settings import AppConfig, Limits
from erase.app.studio import Studio
from erase.attacks import attacks
from erase.attacks import serving as attacks_on
from erase.attacks.base import Outcome, Target
from erase.bundled import JUDGE
from erase.core.seeds import seeded
from erase.erasure.erasure import Erasure
from erase.evaluate.pictures.generation import EvaluationConfig
from erase.evaluate.pictures.judges import open_judge
from erase.methods import get_method, serving
from erase.models.family import family_of
from erase.models.opening import Model, load_model
from erase.prompts.catalogue import Catalogue, Sampling
from erase.prompts.request import EraseRequest, expand
from erase.runs.attack import build_target
from erase.runs.calibrate import CalibrationRun, calibrated
from erase.runs.classify import ClassificationRun, ClassifierConfig, classify
from erase.runs.erase import RunConfig, run
from erase.runs.evaluate import PictureEvaluation, evaluate
from erase.runs.forget_set import ForgetSetRun, choose_forget_set
from erase.runs.measure import MeasureRun, measure
from erase.support.files import write_json
from erase.tasks.classification.config import ClassificationTaskConfig
from erase.tasks.classification.fit import FitConfig
from erase.tasks.diffusion.adversaries import ADVERSARIES, AdversaryName
from erase.tasks.diffusion.sampling import draw
from erase.tasks.diffusion.task import DiffusionTask, DiffusionTaskConfig
from erase.training.config import TrainedConfig, TrainingConfig

Work = Callable[[], Any]
CATALOGUE = Catalogue(
    ["ghost", "skull", "pizza"], ["ink", "noto"], ["{a} {object} in {style} style"]
)
REQUEST, TRAINING = EraseRequest(["ghost"]), TrainingConfig(max_train_steps=2, learning_rate=1e-3)
OF_ATTACKS = {
    "steps": 2,
    "every": 2,
    "batch_size": 2,
    "population": 6,
    "generations": 2,
    "tokens": 3,
}
STEPS, COUNT, SMALL = 2, 3, 8
JUDGED = EvaluationConfig(COUNT, COUNT, STEPS)
CLIP, TIMM = f"local-dir:{JUDGE}", "test_efficientnet"


def quick(method: str) -> Any:
    """The config of a method at its smallest."""
    kind = get_method(method).config
    return kind(training=TRAINING) if issubclass(kind, TrainedConfig) else kind()


class OnPipeline:
    """Every method on one pipeline, and every attack, for pictures so many pixels wide."""

    def __init__(self, model: Model, folder: Path, size: int = 0):
        sampling = replace(model.sampling, steps=STEPS, size=size or model.sampling.size)
        self.model = replace(model, catalogue=replace(CATALOGUE, sampling=sampling))
        self.folder, self.size = folder, size

    def parts(self) -> Iterator[tuple[str, Work]]:
        """What each is called, and what does it."""
        for name in serving(DiffusionTask):
            yield f"method {name}", partial(self.erased, name)
        family = family_of(self.model.pipeline)
        for adversary in [n for n, kind in ADVERSARIES.items() if not kind.hindrance(family)]:
            yield f"method salun against {adversary}", partial(self.erased, "salun", adversary)
        if family.name in ("sd", "sdxl"):
            yield "method salun that keeps", partial(self.erased, "salun", keep=("a rocket",))
        for name in attacks_on(family):
            yield f"attack {name}", partial(self.attacked, name)

    def erased(
        self,
        method: str,
        adversary: AdversaryName | Literal["none"] = "none",
        keep: Sequence[str] = (),
    ) -> tuple[Erasure, Tensor]:
        """Made, written, read and applied; and a picture of the erased model."""
        sets = DiffusionTaskConfig(
            forget_pictures=4, retain_pictures=4, generation_steps=STEPS, batch_size=2,
            size=self.size, adversary=adversary, keep=keep, components=("unet",) if keep else (),
        )  # fmt: skip
        config = RunConfig(
            REQUEST, method=method, method_config=quick(method), task=sets, evaluate=False
        )
        folder = self.folder / " ".join([method, adversary, *keep])
        run(config, folder, model=self.model)
        erasure = Erasure.from_pretrained(folder)
        with erasure.apply(self.model.pipeline.components):
            picture = draw(self.model.pipeline, ["a ghost"], [0], self.model.sampling)
        if not picture.isfinite().all():
            raise ValueError("The erased model draws what is not finite.")
        return erasure, picture

    @cached_property
    def target(self) -> Target:
        """The model as it is."""
        judge = open_judge(CLIP, device=self.model.device)
        prompts = expand(REQUEST, self.model.catalogue)
        return build_target(self.model.pipeline, self.model, prompts, judge, COUNT, 0)

    def attacked(self, name: str) -> Outcome:
        """What an attack finds."""
        config = attacks()[name].config
        known = {field.name for field in fields(config)} & OF_ATTACKS.keys()
        return attacks()[name](self.target, config(**{key: OF_ATTACKS[key] for key in known}))


class OtherCommands:
    """What else computes: judges, classifiers, a measured run and the app's studio, in a folder."""

    def __init__(self, device: str, folder: Path):
        self.device, self.folder, self.model = device, folder, folder.parent / "model"
        if not self.model.exists():
            build_family("sd1").save_pretrained(self.model)
            known = replace(CATALOGUE, sampling=Sampling(STEPS, 2.0))
            write_json(self.model / "concepts.json", asdict(known))
        for number, name in enumerate(("train/a", "train/b", "test/a", "test/b", "erased")):
            (folder / name).mkdir(parents=True)
            pictures = torch.rand(6, 3, SMALL, SMALL, generator=seeded(number)) / (1 + number % 2)
            for i, picture in enumerate(pictures):
                to_pil_image(picture).resize((64, 64)).save(folder / name / f"{i}.png")
        (folder / "captions.txt").write_text("a ghost\n" * 6)
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            weights = timm.create_model(TIMM, num_classes=2).state_dict()
        torch.save(weights, folder / "weights.pt")

    def parts(self) -> Iterator[tuple[str, Work]]:
        """What each is called, and what does it."""
        place, labels = self.folder, ("ghost", "skull")
        of_clip = {"captions": str(place / "captions.txt"), "reference": str(place / "train/a")}
        of_timm = {"judge_classes": labels, "reference": str(place / "train/a")}
        timms = f"timm/{TIMM}/{place / 'weights.pt'}"
        yield "judge open_clip", partial(self.judged, judge=CLIP, labels=labels, **of_clip)
        yield "judge classifier", partial(self.judged, judge=timms, labels=labels, **of_timm)
        yield "judge nudity", partial(self.judged, nudity=True)
        partners = str(place / "train/a")
        yield "judge lpips", partial(self.judged, partners=partners, backbone="squeeze")
        yield "classify", lambda: asdict(classify(ClassificationRun(**self._run()), place / "gaps"))
        yield "calibrate", lambda: asdict(calibrated(CalibrationRun(**self._run(), share=0.3)))
        yield (
            "forget-set",
            lambda: choose_forget_set(
                ForgetSetRun(**self._run("ssd", forget=None), count=3, rounds=1), place / "set.json"
            ),
        )
        yield "run", self.ran
        yield "measure", self.measured
        yield "studio", self.shown

    def judged(self, **asked: Any) -> Mapping[str, Any]:
        """The figures of pictures."""
        output = Path(tempfile.mkdtemp(dir=self.folder)) / "figures"
        found = evaluate(self.folder / "erased", PictureEvaluation(**asked), output, self.device)
        return found["figures"]

    def _run(self, method: str = "finetune", forget: str | None = "random:0.4") -> dict[str, Any]:
        classifier = ClassifierConfig(
            "folder", str(self.folder), SMALL, fit=FitConfig(epochs=1, learning_rate=0.01)
        )
        said = {"forget": forget} if forget else {}
        return {
            "classifier": classifier, "method": method, "method_config": quick(method),
            "task": ClassificationTaskConfig(("model.fc*", "model.conv1*")),
            "device": self.device, **said,
        }  # fmt: skip

    def ran(self) -> Mapping[str, Any]:
        """A run that measures beside an oracle, which is the base itself."""
        config = RunConfig(
            REQUEST, str(self.model), "uce", evaluation=JUDGED, oracle=str(self.model),
            device=self.device,
        )  # fmt: skip
        return asdict(run(config, self.folder / "run"))

    def measured(self) -> Mapping[str, Any]:
        """The same erasure, measured anew."""
        asked = MeasureRun(str(self.folder / "run"), evaluation=JUDGED, device=self.device)
        return asdict(measure(asked))

    def shown(self) -> Mapping[str, Any]:
        """What the app shows of an erasure."""
        config = AppConfig(
            model=str(self.model), device=self.device, erasures=[str(self.folder / "run")]
        )
        studio = Studio(config, Limits())
        erasure = studio.offered()["run"].erasure
        pictures = studio.drawn(["a ghost", "a skull"], 0, 1, [(erasure, 0.5)])
        return {
            "drawn": float(pictures.mean()), "now": float(studio.drawn_now("a pizza", 0, 1).mean()),
            "seen": studio.seen(pictures), "scores": studio.scores(pictures, "a ghost"),
            "nearest": studio.nearest("ghost", 3), "screened": studio.screened(pictures[0])[1],
        }  # fmt: skip


class OnClassifier:
    """Every method on a classifier of digits."""

    def __init__(self, device: str):
        data = TensorDataset(*(part[:256] for part in digits().tensors))
        threes = (data.tensors[1] == 3).nonzero().flatten().tolist()
        model = copy.deepcopy(trained_digits_model()).to(device)
        self.task = build_digits_task(model, dataset=data, forget=threes)

    def parts(self) -> Iterator[tuple[str, Work]]:
        """What each is called, and what does it."""
        for name in serving(ClassificationTask):
            yield f"method {name}", partial(self.erased, name)

    def erased(self, method: str) -> tuple[Erasure, Tensor]:
        """Applied; and what the model then answers."""
        erasure = get_method(method)(self.task, quick(method))
        with erasure.apply(self.task.components):
            return erasure, self.task.predict(next(self.task.forget_batches(0)).inputs).cpu()


AT_HAND = ("emoji", "sd1", "sdxl", "sd3", "flux", "pixart")


def on_pipeline(name: str, dtype: str, device: str, folder: Path) -> OnPipeline:
    """The tiny pipeline of a family, or any other that `erase run` opens."""
    if name not in AT_HAND[1:]:
        return OnPipeline(load_model(name, device, dtype=dtype), folder)
    pipeline = build_family(name).to(getattr(torch, dtype)).to(device)
    return OnPipeline(Model(name, pipeline, None), folder, SIDE)
