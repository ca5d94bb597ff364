"""The rows of benchmarks/classifiers.py: every method that serves classifiers, and its variants."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from erase.methods import methods
from erase.methods.last_layers import LastLayersConfig
from erase.methods.projection import ProjectionConfig
from erase.methods.salun import SalUnConfig
from erase.methods.undo import UndoConfig
from erase.tasks.classification.task import ALL, HEAD, ClassificationTask, ClassificationTaskConfig
from erase.training.config import TrainingConfig

STEPS, LAST_BLOCK = 60, 4
SCALED = "projection, scaled SVD of all layers"
PILOTED = "projection, contrastive, of the head alone, by five pilot seeds"
AS_IT_IS = "projection, contrastive, not calibrated"
NOISES = (0.8, 1.0)
CONTROLS = ("none", "random", "random_per_layer", "bottom")


@dataclass(frozen=True)
class Row:
    """One row of the table: a method, its settings, the task's, and whether they are calibrated.

    classes: whether it is for forget sets that are whole classes alone.
    """

    method: str
    config: Any
    task: ClassificationTaskConfig = field(default_factory=ClassificationTaskConfig)
    tune: bool = True
    classes: bool = False


def candidates() -> dict[str, Row]:
    """Every method by name, and SalUn under its control masks and with other answers."""
    serving = (object, ClassificationTask)
    rows = {name: Row(name, method.config()) for name, method in methods().items()
            if method.task in serving and name != "retrain"}  # fmt: skip
    for name in ("cf_k", "eu_k"):
        rows[name] = Row(name, LastLayersConfig(LAST_BLOCK))
    contrastive = Row("projection", ProjectionConfig(space="contrastive"))
    rows["projection, contrastive"] = contrastive
    rows[AS_IT_IS] = dataclasses.replace(contrastive, tune=False)
    head = ProjectionConfig([HEAD], "contrastive", rank=2)
    rows["projection, contrastive, of the head alone"] = Row("projection", head)
    piloted = ProjectionConfig([HEAD], "contrastive", rank=3, strength=1.1, samples=4000)
    rows[PILOTED] = Row("projection", piloted, tune=False, classes=True)
    rows[SCALED] = Row("projection", ProjectionConfig([ALL], "scaled"))
    rows |= {f"salun, {mask} mask": Row("salun", SalUnConfig(mask=mask)) for mask in CONTROLS}
    rows["salun as published"] = Row("salun", SalUnConfig(teacher="current"))
    held_out = ClassificationTaskConfig(redirect="held_out")
    rows["salun, held-out answers"] = Row("salun", SalUnConfig(), held_out)
    rows |= {name: dataclasses.replace(rows[name], classes=True) for name in ("pour_p", "pour_d")}
    rows |= {f"undo, noise {noise:g}": Row("undo", UndoConfig(noise=noise)) for noise in NOISES}
    longer = SalUnConfig(training=TrainingConfig(2 * STEPS))
    rows[f"salun, held-out answers, {2 * STEPS} steps"] = Row("salun", longer, held_out)
    return {
        name: dataclasses.replace(row, config=briefer(row.config)) for name, row in rows.items()
    }


def briefer(config: Any) -> Any:
    """The config with STEPS optimizer steps and a retain weight of 1, unless it has its own.

    The rows were measured with that weight and at calibrated rates.
    """
    if getattr(config, "retain_weight", 1.0) is None:
        config = dataclasses.replace(config, retain_weight=1.0)
    if not hasattr(config, "training"):
        return config
    training = dataclasses.replace(
        config.training, max_train_steps=config.training.max_train_steps or STEPS
    )
    return dataclasses.replace(config, training=training)
