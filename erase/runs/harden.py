"""One call from an erasure folder to a hardened, measured one."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from erase.erasure.erasure import Erasure
from erase.evaluate.base import Judge
from erase.evaluate.pictures.generation import EvaluationConfig
from erase.evaluate.reports import Report
from erase.methods.harden import HardenConfig
from erase.models.opening import Model
from erase.runs.erase import RunConfig, run
from erase.runs.measuring import Measures
from erase.runs.opening import of_base
from erase.support.config import NotNegative
from erase.tasks.diffusion.config import DiffusionTaskConfig

BATCH = 32  # the bundled model's oracles'


@dataclass(frozen=True)
class HardenRun(Measures):
    """Which erasure is hardened, and how.

    Args:
        erasure: its folder.
        effort: the cost, as a share of training the model anew; 0 is what harden.effort says.
        model: the base, if it is not where the recipe says.
        harden: all there is to choose.
        task: what may change, and how the teacher's pictures are drawn.
        evaluate: whether anything is drawn and judged; `erase measure` can do it later.
        evaluation: the pictures to judge.
        judge: an open_clip name or local-dir:FOLDER, if not the model's own.
        oracle: a pipeline trained without the concept, to measure beside base and hardened.
    """

    erasure: str
    effort: NotNegative[float] = 0.0
    model: str = ""
    harden: HardenConfig = field(default_factory=HardenConfig)
    task: DiffusionTaskConfig = field(default_factory=lambda: DiffusionTaskConfig(batch_size=BATCH))
    evaluate: bool = True
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    judge: str = ""
    oracle: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.harden.folder:
            raise ValueError("harden.folder is the erasure, which is named already; leave it out.")


def run_config(asked: HardenRun) -> RunConfig:
    """The run of the method `harden` on what the erasure's recipe says of model and request.

    Raises ValueError for a folder that holds no erasure, or one that says neither.
    """
    erasure = Erasure.from_pretrained(asked.erasure)
    named = asked if asked.model else of_base(asked, erasure)
    method = replace(named.harden, folder=asked.erasure)
    if asked.effort:
        method = replace(method, effort=asked.effort)
    both = {part.name for part in fields(HardenRun)} & {part.name for part in fields(RunConfig)}
    same = {name: getattr(named, name) for name in both}
    return RunConfig(erasure.facts.asked(), method="harden", method_config=method, **same)


def harden(
    asked: HardenRun,
    output: str | Path,
    model: Model | None = None,
    judge: Judge | None = None,
    oracle: Model | None = None,
) -> Report | None:
    """Harden an erasure, measure the result and write `output`, as `run` does with a request.

    Training goes on where it was interrupted. Raises ValueError on bad input, before any work.
    """
    return run(run_config(asked), output, model, judge, oracle=oracle)
