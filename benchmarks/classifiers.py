"""Every method that serves classifiers beside Retrain and the original, on Fashion-MNIST.

Run: `python benchmarks/classifiers.py --root FOLDER [--model vit]`; FOLDER holds FashionMNIST/raw
as torchvision keeps it. 6,000 training and 2,000 test samples, three seeds; forget sets: random
10 % and 50 %, three classes, worst-case 10 %, highest-loss 10 %. Learning rates are calibrated once
for each method and kind of set, on a pilot seed and training data held out. Goes on where
results/classifiers-resnet.json (or -vit) ends, and prints the tables.
"""

import argparse
import copy
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from ledger import Ledger
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.models import VisionTransformer
from torchvision.models.resnet import BasicBlock, ResNet

from erase.calibrate import calibrate, hold_out
from erase.classifiers import FitConfig, fit
from erase.datasets import in_memory, load_data
from erase.evaluate.classification import GAPS, Reference, Split, mean_interval
from erase.forget_sets import losses_of, select, worst_case
from erase.methods import get_method, methods
from erase.methods.salun import SalUnConfig
from erase.tasks.classification import ClassificationTask, ClassificationTaskConfig

TRAIN, TEST, SEEDS, PILOT = 6_000, 2_000, (0, 1, 2), 100
WHOLE = 1_000_000  # a rank that cuts nothing off
CLASSES = (0, 3, 7)
SETS = ("random_10", "random_50", *(f"class_{c}" for c in CLASSES), "worst_10", "highest_10")
CONTROLS = ("none", "random", "random_per_layer", "bottom")
FITS = {"resnet": FitConfig(12), "vit": FitConfig(20, 0.03)}
COLUMNS = (*GAPS, "kl_to_retrained", "probe_accuracy", "relearning_steps")


def build(model: str) -> nn.Module:
    """A ResNet of four blocks, or a ViT of four layers of width 64."""
    if model == "vit":
        vit = VisionTransformer(28, 7, 4, 4, 64, 128, num_classes=10)
        vit.conv_proj = nn.Conv2d(1, 64, 7, 7)
        return vit
    resnet = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)
    resnet.conv1 = nn.Conv2d(1, 64, 3, 1, 1, bias=False)
    return resnet


@dataclass(frozen=True)
class Row:
    """One row of the table: a method, its settings, and the task's."""

    method: str
    config: Any
    task: ClassificationTaskConfig = field(default_factory=ClassificationTaskConfig)


def candidates() -> dict[str, Row]:
    """Every method by name, and SalUn under its control masks and with other answers."""
    serving = (object, ClassificationTask)
    rows = {name: Row(name, method.config()) for name, method in methods().items()
            if method.task in serving and name != "retrain"}  # fmt: skip
    scaled = dataclasses.replace(rows["projection"].config, space="scaled", rank=WHOLE)
    rows["projection"] = Row("projection", scaled)
    rows |= {f"salun, {mask} mask": Row("salun", SalUnConfig(mask=mask)) for mask in CONTROLS}
    rows["salun as published"] = Row("salun", SalUnConfig(teacher="current"))
    held_out = ClassificationTaskConfig(redirect="held_out")
    rows["salun, held-out answers"] = Row("salun", SalUnConfig(), held_out)
    return rows


def trained(model: str, data: TensorDataset, seed: int) -> nn.Module:
    """A model fitted to the data; weights and order follow from the seed."""
    torch.manual_seed(seed)
    return fit(build(model), data, FITS[model], seed)


def forget_set(
    model: str, name: str, data: TensorDataset, original: nn.Module, seed: int
) -> list[int]:
    """The indices of one kind of forget set; the worst case is finetuning's."""
    kind, value = name.split("_")
    if kind == "class":
        return (data.tensors[1] == int(value)).nonzero().flatten().tolist()
    count = len(data) * int(value) // 100
    if kind == "random":
        generator = torch.Generator().manual_seed(seed)
        return sorted(torch.randperm(len(data), generator=generator)[:count].tolist())
    losses = losses_of(original, data)
    if kind == "highest":
        return select(losses, count, "highest")

    def unlearn(indices: Sequence[int]) -> nn.Module:
        task = task_of(model, original, data, indices, seed)
        get_method("finetune")(task).apply(task.components)
        return task.components["model"]

    return worst_case(unlearn, data, count, select(losses, count), rounds=2)


def task_of(
    model: str,
    original: nn.Module,
    data: TensorDataset,
    forget: Sequence[int],
    seed: int,
    config: ClassificationTaskConfig | None = None,
) -> ClassificationTask:
    """A task around a copy of the original."""
    return ClassificationTask(
        copy.deepcopy(original), data, forget, 10, config, seed,
        build=lambda: build(model), recipe=FITS[model],
    )  # fmt: skip


def calibrated(model: str, data: TensorDataset, ledger: Ledger) -> None:
    """Find the learning rate of every trained row, for sets of samples and for classes."""
    used, held = hold_out(range(len(data)), 0.1, PILOT)
    data, validation = TensorDataset(*data[used]), TensorDataset(*data[held])
    original = trained(model, data, PILOT)
    for kind, pilot_set in (("samples", "random_10"), ("class", f"class_{CLASSES[0]}")):
        forget = forget_set(model, pilot_set, data, original, PILOT)
        task = task_of(model, original, data, forget, PILOT)
        retrained = trained(model, TensorDataset(*data[task.retain]), PILOT)
        for name, row in candidates().items():
            if hasattr(row.config, "training") and ("rate", kind, name) not in ledger:
                task = task_of(model, original, data, forget, PILOT, row.task)
                found = calibrate(row.method, task, retrained, validation, row.config)
                ledger["rate", kind, name] = found.learning_rate
                print(model, kind, name, found, flush=True)


def run_setting(
    model: str, data: tuple[TensorDataset, TensorDataset], name: str, seed: int, ledger: Ledger
) -> None:
    """Every row that is missing on one forget set and seed."""
    missing = [row for row in candidates() if (name, seed, row) not in ledger]
    if not missing:
        return
    original = trained(model, data[0], seed)
    forget = forget_set(model, name, data[0], original, seed)
    task = task_of(model, original, data[0], forget, seed)
    retrained = trained(model, TensorDataset(*data[0][task.retain]), seed)
    reference = Reference(original, retrained, Split(data[0], task.forget, task.retain, data[1]))
    for known, figures in reference.rows.items():
        ledger[name, seed, known] = {"unlearned": figures}
    for row in missing:
        task = task_of(model, original, data[0], forget, seed, candidates()[row].task)
        ledger[name, seed, row] = run_row(task, reference, row, name, ledger)
        print(model, name, seed, row, ledger[name, seed, row].get("average_gap"), flush=True)


def run_row(
    task: ClassificationTask, reference: Reference, row: str, name: str, ledger: Ledger
) -> dict[str, Any]:
    """One method on one forget set: its figures, or why it refused."""
    method, config = candidates()[row].method, candidates()[row].config
    rate = ("rate", "class" if name.startswith("class") else "samples", row)
    if rate in ledger:
        training = dataclasses.replace(config.training, learning_rate=ledger[rate])
        config = dataclasses.replace(config, training=training)
    started = time.perf_counter()
    try:
        erasure = get_method(method)(task, config)
    except ValueError as error:
        return {"refused": str(error)}
    seconds = time.perf_counter() - started
    with erasure.apply(task.components):
        report = reference.report(task.components["model"], seconds)
    return {key: report[key] for key in ("unlearned", "average_gap", "tow", "seconds", "verdict")}


def table(model: str, name: str, ledger: Ledger) -> str:
    """One forget set's rows: means over seeds with 95 % t-intervals."""
    head = " | ".join(("method", "average gap", *COLUMNS, "seconds", "verdict"))
    lines = [f"### {model}, {name}", "", f"| {head} |", "| --- " * (len(COLUMNS) + 4) + "|"]
    for row in ("original", "retrained", *candidates()):
        reports = [ledger[name, seed, row] for seed in SEEDS]
        refused = [report["refused"] for report in reports if "refused" in report]
        if refused:
            lines.append(
                f"| {row} | refused for {len(refused)} of {len(reports)} seeds: {refused[0]} |"
            )
            continue
        cells = [interval([r["unlearned"][column] for r in reports]) for column in COLUMNS]
        known = "average_gap" in reports[0]
        gap = interval([r["average_gap"] for r in reports]) if known else ""
        said = "; ".join(dict.fromkeys(r["verdict"] for r in reports)) if known else ""
        cost = f"{fmean(r['seconds'] for r in reports):.1f} | {said}" if known else " | "
        lines.append(f"| {row} | {gap} | {' | '.join(cells)} | {cost} |")
    return "\n".join(lines) + "\n"


def interval(values: list[float]) -> str:
    """Mean and half width of the t-interval."""
    mean, half = mean_interval(values)
    return f"{mean:.2f} ± {half:.2f}"


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--model", choices=tuple(FITS), default="resnet")
    args = parser.parse_args()
    ledger = Ledger(Path(__file__).parent / "results" / f"classifiers-{args.model}.json")
    whole = load_data("fashion_mnist", args.root)
    data = in_memory(whole.train, range(TRAIN)), in_memory(whole.test, range(TEST))
    calibrated(args.model, data[0], ledger)
    for seed in SEEDS:
        for name in SETS:
            run_setting(args.model, data, name, seed, ledger)
    print("\n".join(table(args.model, name, ledger) for name in SETS))


if __name__ == "__main__":
    main()
