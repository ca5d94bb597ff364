"""The one model behind the app: it draws with and without erasures, one request at a time."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw
from torch import Tensor

from erase.app.settings import AppConfig, Limits, require_short, require_within
from erase.app.shelf import ready_folders
from erase.app.visitors import Made
from erase.erasure.algebra import compose, scale
from erase.erasure.erasure import Erasure
from erase.evaluate.base import ReadsCaptions, ReadsNames
from erase.evaluate.pictures.judges import default_judge, judge_of
from erase.evaluate.pictures.nudity import EXPOSED, NudityDetector, blurred
from erase.evaluate.reports import Report
from erase.models.opening import Model, OpeningConfig, find_model, oracle_opening
from erase.prompts.catalogue import Sampling
from erase.support.pictures import as_images
from erase.tasks.diffusion.sampling import draw

MOST_STRENGTH, KEPT_PICTURES, SHOWN_SIDE = 1.5, 64, 384
LARGEST_SEED = 2**31 - 1
THRESHOLD = 0.5


class Studio:
    """A pipeline with its judge; whoever changes the weights holds the lock and puts them back."""

    def __init__(self, config: AppConfig, limits: Limits):
        self.config, self.limits = config, limits
        self.model = self._opened(config.model, config)
        oracle = config.oracle
        self.oracle = self._opened(oracle, oracle_opening(config)) if oracle else None
        known, device = self.model.catalogue, self.model.device
        judged = config.judge or default_judge(known)
        self.judge = judge_of(config.judge, known, device) if judged else None
        self.lock = threading.RLock()
        self._detector: NudityDetector | None = None
        self._drawn: OrderedDict[tuple, Tensor] = OrderedDict()

    def _opened(self, name: str, opening: OpeningConfig) -> Model:
        """A model by a name that may be told: strangers need not know where a folder lies."""
        model = find_model(name, opening).open()
        hidden = self.config.public and Path(name).exists()
        return replace(model, name=Path(name).name) if hidden else model

    @property
    def always_screened(self) -> bool:
        """Strangers see nothing unscreened of a model that may draw anything."""
        return self.config.public and self.model.catalogue is None

    @property
    def labels(self) -> dict[str, list[str]]:
        """What the judge may take a picture for, by kind."""
        known = self.model.catalogue
        return {"object": list(known.objects), "style": list(known.styles)} if known else {}

    def offered(self) -> dict[str, Made]:
        """The ready erasures and those that the app was started with, by name.

        ValueError for one of another base.
        """
        found = {}
        for folder in (*ready_folders(self.config.model), *map(Path, self.config.erasures)):
            if folder.name in found:
                raise ValueError(f"Two erasure folders are called {folder.name}; rename one.")
            erasure = Erasure.from_pretrained(folder)
            with erasure.apply(self.model.pipeline.components):
                stored = erasure.facts.report
                report = Report.from_json(stored) if stored else None
                found[folder.name] = Made(folder.name, erasure, folder, report)
        return found

    def sampling(self, steps: int) -> Sampling:
        """The model's own, with so many steps."""
        require_within("The number of steps", steps, 1, self.limits.steps)
        return replace(self.model.sampling, steps=int(steps))

    @contextmanager
    def in_force(self, chosen: Sequence[tuple[Erasure, float]]) -> Iterator[None]:
        """While in force, the erasures work one after the other at their strengths."""
        for _, strength in chosen:
            require_within("The strength", strength, 0, MOST_STRENGTH)
        with self.lock:
            parts = [scale(erasure, strength) for erasure, strength in chosen]
            joint = compose(parts) if parts else None
            with joint.apply(self.model.pipeline.components) if joint else nullcontext():
                yield

    def drawn(
        self,
        prompts: Sequence[str],
        seed: int,
        steps: int,
        chosen: Sequence[tuple[Erasure, float]] = (),
    ) -> Tensor:
        """One picture a prompt [N, 3, H, W] in 0..1, all of one seed; the base's are remembered."""
        for prompt in prompts:
            require_short("prompt", prompt, self.limits)
        require_within("The seed", seed, 0, LARGEST_SEED)
        sampling = self.sampling(steps)
        key = (*prompts, seed, steps)
        if not chosen and key in self._drawn:
            return self._drawn[key]
        with self.in_force(chosen):
            seeds = [int(seed)] * len(prompts)
            with self.model.drawing() as pipeline:
                pictures = draw(pipeline, prompts, seeds, sampling).float()
        if not chosen:
            self._drawn[key] = pictures
            while len(self._drawn) > KEPT_PICTURES:
                self._drawn.popitem(last=False)
        return pictures

    def drawn_now(self, prompt: str, seed: int, steps: int) -> Tensor:
        """A picture [3, H, W] by the weights as they are at this moment, whoever changed them."""
        sampling = self.sampling(steps)
        return draw(self.model.pipeline, [prompt], [seed], sampling, "pt", "looking").float()[0]

    def seen(self, pictures: Tensor) -> list[dict[str, str]]:
        """What the judge takes each picture for, by kind of label."""
        if self.judge is None or not self.labels:
            return [{} for _ in pictures]
        embeddings = self.judge.embed(pictures)
        by_kind = {k: self.judge.classify(embeddings, k, v) for k, v in self.labels.items()}
        return [{kind: by_kind[kind][i] for kind in by_kind} for i in range(len(pictures))]

    def scores(self, pictures: Tensor, prompt: str) -> list[float]:
        """CLIP score of each picture with the prompt; none without a judge that reads."""
        if not isinstance(self.judge, ReadsCaptions):
            return []
        return self.judge.score(self.judge.embed(pictures), [prompt] * len(pictures)).tolist()

    def nearest(self, name: str, count: int) -> list[str]:
        """The objects that a judge tells least apart from this one; none by one that reads none."""
        objects = self.labels.get("object", [])
        if not isinstance(self.judge, ReadsNames) or name not in objects:
            return []
        return self.judge.nearest("object", name, objects)[:count]

    def screened(self, picture: Tensor) -> tuple[Image.Image, str]:
        """The picture as it is shown, exposed parts blurred and boxed, and what NudeNet found."""
        self._detector = self._detector or NudityDetector(self.model.device)
        large = shown(picture)
        (found,) = self._detector.detect([large])
        exposed = [d for d in found if d.score >= THRESHOLD and d.label in EXPOSED]
        screened = blurred(large, exposed, THRESHOLD)
        pen = ImageDraw.Draw(screened)
        for detection in (d for d in found if d.score >= THRESHOLD):
            left, top, width, height = detection.box
            pen.rectangle((left, top, left + width, top + height), outline="#e0483b", width=3)
            pen.text((left + 4, top + 2), detection.label.lower(), fill="#e0483b")
        return screened, f"{len(exposed)} exposed, {len(found)} detections in all"


def shown(picture: Tensor) -> Image.Image:
    """A picture [3, H, W] large enough to look at."""
    (image,) = as_images(picture[None])
    if max(image.size) >= SHOWN_SIDE:
        return image
    factor = SHOWN_SIDE / max(image.size)
    return image.resize([round(side * factor) for side in image.size], Image.Resampling.LANCZOS)


def beside(left: Tensor, right: Tensor) -> Image.Image:
    """Two pictures [3, H, W] side by side."""
    one, other = shown(left), shown(right)
    joint = Image.new("RGB", (one.width + other.width + 8, one.height), "white")
    joint.paste(one, (0, 0))
    joint.paste(other, (one.width + 8, 0))
    return joint
