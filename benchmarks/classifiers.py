"""Every method that serves classifiers beside Retrain and the original, on Fashion-MNIST.

Run: `python benchmarks/classifiers.py --root FOLDER [--model vit]`; FOLDER holds FashionMNIST/raw
as torchvision keeps it. The first 4,000 training and 2,000 test samples, three seeds, 60 steps of
64 forget and 64 retain samples for the methods that train by steps. Forget sets: random 10 % and
50 %, three classes, worst-case 10 %, highest-loss 10 %. Learning rates, and scaled SVD's two
alphas, are calibrated once for each method and kind of set, on a pilot seed and training data held
out. Peers (benchmarks/peers.py) run where they are installed. Goes on where
results/classifiers-resnet.json (or -vit) ends, and prints the tables.
"""

import argparse
import copy
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from ledger import Ledger
from peers import PEERS
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.data import TensorDataset

from erase.calibrate import calibrate, hold_out
from erase.classifiers import FitConfig, fit
from erase.datasets import in_memory, load_data
from erase.evaluate.classification import GAPS, Reference, Split, mean_interval, outputs_of
from erase.forget_sets import chooser, losses_of, select, worst_case
from erase.methods import get_method, methods
from erase.methods.projection import ProjectionConfig
from erase.methods.salun import SalUnConfig
from erase.tasks.classification import ALL, ClassificationTask, ClassificationTaskConfig

TRAIN, TEST, STEPS, SEEDS, PILOT = 4_000, 2_000, 60, (0, 1, 2), 100
CLASSES = (0, 3, 7)
SETS = ("random_10", "random_50", *(f"class_{c}" for c in CLASSES), "worst_10", "highest_10")
PILOTS = {"samples": "random_10", "class": f"class_{CLASSES[0]}"}
SCALED = "projection, scaled SVD of all layers"
CONTROLS = ("none", "random", "random_per_layer", "bottom")
ALPHAS = tuple(product((1.0, 3.0, 10.0, 30.0, 100.0), (10.0, 30.0, 100.0, 300.0, 1000.0)))
FITS = {"resnet": FitConfig(12), "vit": FitConfig(25, 0.03)}
COLUMNS = (*GAPS, "kl_to_retrained", "probe_accuracy", "relearning_steps")


def build(model: str) -> nn.Module:
    """A ResNet of four blocks of 16 to 128 channels, or a ViT of four layers of width 64."""
    if model == "vit":
        return VisionTransformer(28, 7, 1, 10, embed_dim=64, depth=4, num_heads=4, mlp_ratio=2)
    shape = {"channels": (16, 32, 64, 128), "stem_width": 16}
    return ResNet(BasicBlock, (1, 1, 1, 1), 10, 1, **shape)


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
    rows[SCALED] = Row("projection", ProjectionConfig([ALL], "scaled"))
    rows |= {f"salun, {mask} mask": Row("salun", SalUnConfig(mask=mask)) for mask in CONTROLS}
    rows["salun as published"] = Row("salun", SalUnConfig(teacher="current"))
    held_out = ClassificationTaskConfig(redirect="held_out")
    rows["salun, held-out answers"] = Row("salun", SalUnConfig(), held_out)
    return {
        name: dataclasses.replace(row, config=briefer(row.config)) for name, row in rows.items()
    }


def briefer(config: Any) -> Any:
    """The config with STEPS optimizer steps, unless it has a number of its own."""
    if not hasattr(config, "training"):
        return config
    training = dataclasses.replace(config.training, steps=config.training.steps or STEPS)
    return dataclasses.replace(config, training=training)


@dataclass(frozen=True, eq=False)
class Bench:
    """One kind of model, the data, and the figures so far."""

    model: str
    train: TensorDataset
    test: TensorDataset
    ledger: Ledger

    def trained(self, data: TensorDataset, seed: int) -> nn.Module:
        """A model fitted to the data; weights and order follow from the seed."""
        torch.manual_seed(seed)
        return fit(build(self.model), data, FITS[self.model], seed)

    @cache  # noqa: B019 (one bench a process)
    def original(self, seed: int) -> nn.Module:
        """The model that is to forget."""
        return self.trained(self.train, seed)

    def task(
        self, original: nn.Module, data: TensorDataset, forget: Sequence[int], seed: int,
        config: ClassificationTaskConfig | None = None,
    ) -> ClassificationTask:  # fmt: skip
        """A task around a copy of the original."""
        return ClassificationTask(
            copy.deepcopy(original), data, forget, 10, config, seed,
            build=lambda: build(self.model), recipe=FITS[self.model],
        )  # fmt: skip

    def forget_set(
        self, name: str, original: nn.Module, data: TensorDataset, seed: int
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
            task = self.task(original, data, indices, seed)
            get_method("finetune")(task).apply(task.components)
            return task.components["model"]

        return worst_case(
            unlearn, data, select(losses, count), chooser(data.tensors[1], count), rounds=2
        )


def calibrated(bench: Bench, rows: dict[str, Row]) -> None:
    """Find every row's learning rate or alphas, for sets of samples and for classes."""
    used, held = hold_out(range(TRAIN), 0.1, PILOT)
    data, validation = (TensorDataset(*bench.train[part]) for part in (used, held))
    wanted = {
        (kind, name)
        for kind, (name, row) in product(PILOTS, rows.items())
        if (hasattr(row.config, "training") or name == SCALED)
        and ("tuned", kind, name) not in bench.ledger
    }
    if not wanted:
        return
    original = bench.trained(data, PILOT)
    for kind, pilot_set in PILOTS.items():
        forget = bench.forget_set(pilot_set, original, data, PILOT)
        task = bench.task(original, data, forget, PILOT)
        retrained = bench.trained(TensorDataset(*data[task.retain]), PILOT)
        for name in sorted(name for of_kind, name in wanted if of_kind == kind):
            row = rows[name]
            task = bench.task(original, data, forget, PILOT, row.task)
            if name == SCALED:
                found = best_alphas(task, row, validation)
            else:
                search = calibrate(row.method, task, retrained, validation, row.config)
                found = {"training.learning_rate": search.learning_rate}
            bench.ledger["tuned", kind, name] = found
            print(bench.model, kind, name, found, flush=True)


def best_alphas(task: ClassificationTask, row: Row, validation: TensorDataset) -> dict[str, float]:
    """The pair of the grid with the best retain accuracy x forget error, on data held out.

    Where no class goes as a whole, the forget error is that of the forget set.
    """
    gone = task.forgotten_classes()

    def score(alphas: tuple[float, float]) -> float:
        config = dataclasses.replace(row.config, forget_alpha=alphas[0], retain_alpha=alphas[1])
        try:
            erasure = get_method("projection")(task, config)
        except ValueError:
            return 0.0
        with erasure.apply(task.components):
            held = outputs_of(task.components["model"], validation)
            forgotten = torch.isin(held.labels, torch.tensor(gone, dtype=torch.long))
            missed = outputs_of(task.components["model"], task.subset(task.forget)).accuracy()
        lost = held.accuracy(forgotten) if gone else missed
        return held.accuracy(~forgotten) * (100 - lost)

    forget_alpha, retain_alpha = max(ALPHAS, key=score)
    return {"forget_alpha": forget_alpha, "retain_alpha": retain_alpha}


def run_setting(bench: Bench, rows: dict[str, Row], name: str, seed: int) -> None:
    """Every row that is missing on one forget set and seed."""
    ledger, data = bench.ledger, bench.train
    missing = [row for row in (*rows, *PEERS) if (name, seed, row) not in ledger]
    if not missing:
        return
    original = bench.original(seed)
    if (name, seed, "indices") not in ledger:
        ledger[name, seed, "indices"] = bench.forget_set(name, original, data, seed)
    task = bench.task(original, data, ledger[name, seed, "indices"], seed)
    retrained = bench.trained(TensorDataset(*data[task.retain]), seed)
    reference = Reference(original, retrained, Split(data, task.forget, task.retain, bench.test))
    for known, figures in reference.rows.items():
        ledger[name, seed, known] = {"unlearned": figures}
    for row in missing:
        if row in PEERS:
            ledger[name, seed, row] = run_peer(row, task, reference)
        else:
            task = bench.task(original, data, task.forget, seed, rows[row].task)
            config = tuned(rows[row], ledger, name, row)
            ledger[name, seed, row] = run_row(rows[row].method, config, task, reference)
        print(bench.model, name, seed, row, ledger[name, seed, row].get("average_gap"), flush=True)


def tuned(row: Row, ledger: Ledger, name: str, title: str) -> Any:
    """The row's config with what was calibrated for this kind of forget set."""
    key = ("tuned", "class" if name.startswith("class") else "samples", title)
    if key not in ledger:
        return row.config
    found = dict(ledger[key])
    if "training.learning_rate" in found:
        rate = found.pop("training.learning_rate")
        found["training"] = dataclasses.replace(row.config.training, learning_rate=rate)
    return dataclasses.replace(row.config, **found)


def run_row(
    method: str, config: Any, task: ClassificationTask, reference: Reference
) -> dict[str, Any]:
    """One method on one forget set: its figures, or why it refused."""
    started = time.perf_counter()
    try:
        erasure = get_method(method)(task, config)
    except ValueError as error:
        return {"refused": str(error)}
    seconds = time.perf_counter() - started
    with erasure.apply(task.components):
        return figures(reference, task.components["model"], seconds)


def run_peer(peer: str, task: ClassificationTask, reference: Reference) -> dict[str, Any]:
    """Another package's method on a copy of the same model and the same split."""
    model = copy.deepcopy(task.components["model"])
    started = time.perf_counter()
    PEERS[peer](model, task.subset(task.forget), task.subset(task.retain))
    return figures(reference, model.eval(), time.perf_counter() - started)


def figures(reference: Reference, model: nn.Module, seconds: float) -> dict[str, Any]:
    """What the table needs of the report."""
    report = reference.report(model, seconds)
    return {key: report[key] for key in ("unlearned", "average_gap", "tow", "seconds", "verdict")}


def table(bench: Bench, rows: dict[str, Row], name: str) -> str:
    """One forget set's rows: means over seeds with 95 % t-intervals."""
    head = " | ".join(("method", "average gap", *COLUMNS, "seconds", "verdict"))
    lines = [f"### {bench.model}, {name}", "", f"| {head} |", "| --- " * (len(COLUMNS) + 4) + "|"]
    for row in ("original", "retrained", *rows, *PEERS):
        reports = [bench.ledger[name, seed, row] for seed in SEEDS]
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
    bench, rows = Bench(args.model, *data, ledger), candidates()
    calibrated(bench, rows)
    for seed, name in product(SEEDS, SETS):
        run_setting(bench, rows, name, seed)
    print("\n".join(table(bench, rows, name) for name in SETS))


if __name__ == "__main__":
    main()
