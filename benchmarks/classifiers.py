"""Every method that serves classifiers beside Retrain and the original, on Fashion-MNIST.

Run: `python benchmarks/classifiers.py --root FOLDER --out runs/classifiers [--model vit]`; FOLDER
holds FashionMNIST/raw as torchvision keeps it. 6,000 training and 2,000 test samples, three seeds;
forget sets: random 10 % and 50 %, three classes, worst-case 10 %, highest-loss 10 %. Learning rates
are calibrated once for each method and kind of set, on a pilot seed and training data held out.
Goes on where it stopped and writes resnet.md or vit.md.
"""

import argparse
import copy
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.models import VisionTransformer
from torchvision.models.resnet import BasicBlock, ResNet

from erase.calibrate import calibrate, hold_out
from erase.classifiers import FitConfig, fit
from erase.datasets import in_memory, load_data
from erase.evaluate.classification import GAPS, Split, gap_report, mean_interval
from erase.forget_sets import losses_of, select
from erase.methods import get_method, methods
from erase.methods.salun import SalUnConfig
from erase.tasks.classification import ClassificationTask

TRAIN, TEST, SEEDS, PILOT = 6_000, 2_000, (0, 1, 2), 100
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


def candidates() -> dict[str, tuple[str, Any]]:
    """Rows of the table: every method by name, and SalUn under its control masks."""
    serving = (object, ClassificationTask)
    rows = {name: (name, method.config()) for name, method in methods().items()
            if method.task in serving and name != "retrain"}  # fmt: skip
    rows["projection"] = ("projection", dataclasses.replace(rows["projection"][1], space="scaled"))
    rows |= {f"salun, {mask} mask": ("salun", SalUnConfig(mask=mask)) for mask in CONTROLS}
    return rows


def trained(model: str, data: TensorDataset, seed: int) -> nn.Module:
    """A model fitted to the data; weights and order follow from the seed."""
    torch.manual_seed(seed)
    return fit(build(model), data, FITS[model], seed)


def forget_set(name: str, data: TensorDataset, original: nn.Module, seed: int) -> list[int]:
    """The indices of one kind of forget set."""
    kind, value = name.split("_")
    if kind == "class":
        return (data.tensors[1] == int(value)).nonzero().flatten().tolist()
    count = len(data) * int(value) // 100
    if kind == "random":
        generator = torch.Generator().manual_seed(seed)
        return sorted(torch.randperm(len(data), generator=generator)[:count].tolist())
    tail = "lowest" if kind == "worst" else "highest"
    return select(losses_of(original, data), count, tail)


def task_of(
    model: str, original: nn.Module, data: TensorDataset, forget: Sequence[int], seed: int
) -> ClassificationTask:
    """A task around a copy of the original."""
    return ClassificationTask(
        copy.deepcopy(original), data, forget, 10, seed=seed, build=lambda: build(model)
    )


def calibrated(model: str, data: TensorDataset, folder: Path) -> dict[str, dict[str, float]]:
    """The learning rate of every trained row, for sets of samples and for classes."""
    path = folder / f"{model}-rates.json"
    rates = json.loads(path.read_text()) if path.exists() else {}
    original = trained(model, data, PILOT)
    for kind, name in (("samples", "random_10"), ("class", f"class_{CLASSES[0]}")):
        forget = forget_set(name, data, original, PILOT)
        retain = sorted({*range(len(data))} - {*forget})
        kept, held = hold_out(retain, 0.1, PILOT)
        retrained = trained(model, TensorDataset(*data[kept]), PILOT)
        used = TensorDataset(*data[sorted([*forget, *kept])])
        places = {index: place for place, index in enumerate(sorted([*forget, *kept]))}
        task = task_of(model, original, used, [places[i] for i in forget], PILOT)
        for row, (method, config) in candidates().items():
            if hasattr(config, "training") and row not in rates.setdefault(kind, {}):
                validation = TensorDataset(*data[held])
                found = calibrate(method, task, retrained, validation, config)
                rates[kind][row] = found.learning_rate
                print(model, kind, found, flush=True)
                path.write_text(json.dumps(rates, indent=1))
    return rates


def run_setting(
    model: str, data: tuple[TensorDataset, TensorDataset], name: str, seed: int,
    rates: dict[str, dict[str, float]], folder: Path,
) -> None:  # fmt: skip
    """Every row that is missing on one forget set and seed."""
    missing = [row for row in candidates() if not path_of(folder, model, name, seed, row).exists()]
    if not missing:
        return
    original = trained(model, data[0], seed)
    forget = forget_set(name, data[0], original, seed)
    task = task_of(model, original, data[0], forget, seed)
    retrained = fit(build_seeded(model, seed), task.subset(task.retain), FITS[model], seed)
    split = Split(data[0], task.forget, task.retain, data[1])
    of_kind = rates["class" if name.startswith("class") else "samples"]
    for row in missing:
        method, config = candidates()[row]
        if row in of_kind:
            training = dataclasses.replace(config.training, learning_rate=of_kind[row])
            config = dataclasses.replace(config, training=training)
        started = time.perf_counter()
        try:
            erasure = get_method(method)(task, config)
        except ValueError as error:
            report = {"refused": str(error)}
        else:
            seconds = time.perf_counter() - started
            with erasure.apply(task.components):
                unlearned = task.components["model"]
                report = gap_report(original, retrained, unlearned, split, seconds)
        path_of(folder, model, name, seed, row).write_text(json.dumps(report))
        print(model, name, seed, row, report.get("average_gap"), flush=True)


def build_seeded(model: str, seed: int) -> nn.Module:
    """An untrained model with the seed's weights."""
    torch.manual_seed(seed)
    return build(model)


def path_of(folder: Path, model: str, name: str, seed: int, row: str) -> Path:
    """Where one report is kept."""
    return folder / f"{model}-{name}-{seed}-{row.replace(', ', '-').replace(' ', '_')}.json"


def table(folder: Path, model: str, name: str) -> str:
    """One forget set's rows: means over seeds with 95 % t-intervals."""
    head = " | ".join(("method", "average gap", *COLUMNS, "seconds"))
    lines = [f"### {model}, {name}", "", f"| {head} |"]
    lines.append("| --- " * (len(COLUMNS) + 3) + "|")
    for row in ("original", "retrained", *candidates()):
        source = row if row in candidates() else next(iter(candidates()))
        reports = [json.loads(path_of(folder, model, name, s, source).read_text()) for s in SEEDS]
        if any("refused" in report for report in reports):
            lines.append(f"| {row} | refused: {reports[0].get('refused')} |")
            continue
        key = row if row in ("original", "retrained") else "unlearned"
        cells = [interval([report[key][column] for report in reports]) for column in COLUMNS]
        gap = interval([r["average_gap"] for r in reports]) if key == "unlearned" else ""
        seconds = f"{reports[0]['seconds']:.1f}" if key == "unlearned" else ""
        lines.append(f"| {row} | {gap} | {' | '.join(cells)} | {seconds} |")
    return "\n".join(lines) + "\n"


def interval(values: list[float]) -> str:
    """Mean and half width of the t-interval."""
    mean, half = mean_interval(values)
    return f"{mean:.2f} ± {half:.2f}"


def main() -> None:
    """Run what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", choices=tuple(FITS), default="resnet")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    whole = load_data("fashion_mnist", args.root)
    data = in_memory(whole.train, range(TRAIN)), in_memory(whole.test, range(TEST))
    rates = calibrated(args.model, data[0], args.out)
    for seed in SEEDS:
        for name in SETS:
            run_setting(args.model, data, name, seed, rates, args.out)
    tables = "\n".join(table(args.out, args.model, name) for name in SETS)
    (args.out / f"{args.model}.md").write_text(tables)
    print(tables)


if __name__ == "__main__":
    main()
