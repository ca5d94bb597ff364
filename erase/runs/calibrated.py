"""One call from a classifier and a forget set to the setting that a method needs for it."""

from dataclasses import replace

from torch.utils.data import Subset

from erase.methods import get_method
from erase.runs.calibrate import Calibration, calibrate, hold_out, tuned_setting
from erase.runs.classify import ClassificationRun, build_task, data_of, load_or_train, retrained
from erase.tasks.classification.forget_sets import forget_indices


def calibrated(run: ClassificationRun, share: float = 0.1) -> Calibration:
    """Search on an original and a Retrain of their own that never see the share held out.

    Raises ValueError on bad input, before any work.
    """
    if not 0 < share < 1:
        raise ValueError(f"share is {share}; give one in (0, 1).")
    tuned_setting(run.method, run.method_config or get_method(run.method).config())
    data = data_of(run.classifier)
    forget = forget_indices(run.forget, data, run.seed)
    retain = sorted(set(range(len(data.train))) - set(forget))
    used, held = hold_out(retain, share, run.seed)
    rows = sorted({*forget, *used})
    pilot = replace(data, train=Subset(data.train, rows))
    original = load_or_train(replace(run.classifier, weights=""), pilot)
    places = {row: place for place, row in enumerate(rows)}
    task = build_task(run, original, pilot, [places[row] for row in forget])
    validation = Subset(data.train, held)
    return calibrate(run.method, task, retrained(task), validation, run.method_config)
