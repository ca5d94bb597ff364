"""Every method that serves classifiers beside Retrain and the original, on Fashion-MNIST.

Run: `python benchmarks/classifiers.py --root FOLDER [--model vit] [--seeds 0]`; FOLDER holds
FashionMNIST/raw as torchvision keeps it. The first 4,000 training and 2,000 test samples, three
seeds, 60 steps of 64 forget and 64 retain samples for the methods that train by steps, but for one
row. Forget sets:
random 10 % and 50 %, three classes, worst-case 10 % (finetuning's), highest-loss 10 %. Every
method's own setting (a learning rate, mostly) and scaled SVD's two alphas are calibrated once for
each kind of set, on a pilot seed and training data held out, by the average gap to Retrain; the
peers of benchmarks/peers.py keep their defaults. Retrain has other initial weights and another
order than the original and every method. Goes on where results/classifiers-resnet.json (or -vit)
ends, and prints the tables of all settings whose seeds are done.
"""

import argparse
import copy
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from classifier_rows import SCALED, STEPS, Row, briefer, candidates
from classifier_table import table
from decoded import in_memory
from ledger import Ledger
from peers import KNOWN, PEERS
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.data import TensorDataset

from erase.evaluate.classifiers.gaps import Reference, Split, gap_figures
from erase.methods import get_method
from erase.prompts.seeds import RETRAIN_SEED
from erase.runs.calibrate import calibrate, gap_of, hold_out, with_setting
from erase.support.errors import first_line
from erase.tasks.classification.datasets import load_data
from erase.tasks.classification.fit import FitConfig, fit, outputs_of
from erase.tasks.classification.forget_sets import chooser, losses_of, select, worst_case
from erase.tasks.classification.task import ClassificationTask, ClassificationTaskConfig

TRAIN, TEST, SEEDS, PILOT = 4_000, 2_000, (0, 1, 2), 100
CLASSES = (0, 3, 7)
SETS = ("random_10", "random_50", *(f"class_{c}" for c in CLASSES), "worst_10", "highest_10")
PILOTS = {"samples": "random_10", "class": f"class_{CLASSES[0]}"}
ALPHAS = tuple(product((1.0, 3.0, 10.0, 30.0), (10.0, 30.0, 100.0, 300.0)))
WORST = "lowest sum of losses of the original and of two rounds' models"
FITS = {"resnet": FitConfig(12), "vit": FitConfig(25, 0.03)}


def build(model: str) -> nn.Module:
    """timm's ResNet with four blocks of 16 to 128 channels, or a ViT of four layers of width 64."""
    if model == "vit":
        return VisionTransformer(28, 7, 1, 10, embed_dim=64, depth=4, num_heads=4, mlp_ratio=2)
    return ResNet(BasicBlock, (1, 1, 1, 1), 10, 1, channels=(16, 32, 64, 128))


@dataclass(frozen=True, eq=False)
class Bench:
    """One kind of model, the data, and the figures so far."""

    model: str
    train: TensorDataset
    test: TensorDataset
    ledger: Ledger | None = None

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
            finetune = get_method("finetune")
            finetune(task, briefer(finetune.config())).apply(task.components)
            return task.components["model"]

        return worst_case(losses, unlearn, data, chooser(data.tensors[1], count), rounds=2)


def calibrated(bench: Bench, rows: dict[str, Row]) -> None:
    """Find every row's own setting, for sets of samples and for classes."""
    used, held = hold_out(range(TRAIN), 0.1, PILOT)
    data, validation = (TensorDataset(*bench.train[part]) for part in (used, held))
    wanted = [
        (kind, name)
        for kind, (name, row) in product(PILOTS, rows.items())
        if ("tuned", kind, name) not in bench.ledger
        and row.tune
        and (kind == "class" or not row.classes)
        and (hasattr(row.config, "training") or hasattr(row.config, "tuned"))
    ]
    if not wanted:
        return
    original = bench.trained(data, PILOT)
    for kind, pilot_set in PILOTS.items():
        forget = bench.forget_set(pilot_set, original, data, PILOT)
        task = bench.task(original, data, forget, PILOT)
        retrained = bench.trained(TensorDataset(*data[task.retain]), PILOT + RETRAIN_SEED)
        for name in (name for of_kind, name in wanted if of_kind == kind):
            row = rows[name]
            task = bench.task(original, data, forget, PILOT, row.task)
            if name == SCALED:
                found = best_alphas(task, row, validation, retrained)
            else:
                search = calibrate(row.method, task, retrained, validation, row.config)
                found = {search.setting: search.value, "gaps": search.gaps}
            bench.ledger["tuned", kind, name] = found
            print(bench.model, kind, name, found, flush=True)


def best_alphas(
    task: ClassificationTask, row: Row, validation: TensorDataset, retrained: nn.Module
) -> dict[str, float]:
    """The best pair of the grid on data held out.

    For a class by its authors' score, retain accuracy x forget error, else by the average gap.
    """
    split = Split(task.dataset, task.forget, task.retain, validation)
    goal, gone = gap_figures(retrained, split), torch.tensor(task.forgotten_classes())

    def score(alphas: tuple[float, float]) -> float:
        config = dataclasses.replace(row.config, forget_alpha=alphas[0], retain_alpha=alphas[1])
        if not len(gone):
            return -gap_of("projection", task, config, split, goal)
        with get_method("projection")(task, config).apply(task.components):
            held = outputs_of(task.components["model"], validation)
        forgotten = torch.isin(held.labels, gone)
        return held.accuracy(~forgotten) * (100 - held.accuracy(forgotten))

    forget_alpha, retain_alpha = max(ALPHAS, key=score)
    return {"forget_alpha": forget_alpha, "retain_alpha": retain_alpha}


def titles(rows: dict[str, Row], name: str) -> tuple[str, ...]:
    """The rows of one kind of forget set, peers last."""
    of_class = name.startswith("class")
    return (*(title for title, row in rows.items() if of_class or not row.classes), *PEERS)


def run_setting(bench: Bench, rows: dict[str, Row], name: str, seed: int) -> None:
    """Every row that is missing on one forget set and seed."""
    ledger, data = bench.ledger, bench.train
    missing = [row for row in titles(rows, name) if (name, seed, row) not in ledger]
    if not missing:
        return
    original = bench.original(seed)
    if (name, seed, "indices") not in ledger:
        ledger[name, seed, "indices"] = bench.forget_set(name, original, data, seed)
    task = bench.task(original, data, ledger[name, seed, "indices"], seed)
    started = time.perf_counter()
    retrained = bench.trained(TensorDataset(*data[task.retain]), seed + RETRAIN_SEED)
    seconds = time.perf_counter() - started
    reference = Reference(original, retrained, Split(data, task.forget, task.retain, bench.test))
    ledger[name, seed, "original"] = {"unlearned": reference.rows["original"]}
    ledger[name, seed, "retrained"] = {
        "unlearned": reference.rows["retrained"], "seconds": seconds
    }  # fmt: skip
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
    config, key = row.config, ("tuned", "class" if name.startswith("class") else "samples", title)
    for setting, value in ledger.get(key, {}).items():
        config = config if setting == "gaps" else with_setting(config, setting, value)
    return config


def run_row(
    method: str, config: Any, task: ClassificationTask, reference: Reference
) -> dict[str, Any]:
    """One method on one forget set: its figures, or why there are none."""
    started = time.perf_counter()
    try:
        erasure = get_method(method)(task, config)
        seconds = time.perf_counter() - started
        with erasure.apply(task.components):
            return figures(reference, task.components["model"], seconds)
    except (ValueError, RuntimeError) as error:
        return {"refused": first_line(error)}


def run_peer(peer: str, task: ClassificationTask, reference: Reference) -> dict[str, Any]:
    """Another package's method on a copy of the same model and the same split."""
    model = copy.deepcopy(task.components["model"])
    try:
        started = time.perf_counter()
        PEERS[peer](model, task.subset(task.forget), task.subset(task.retain))
        return figures(reference, model.eval(), time.perf_counter() - started)
    except (ValueError, RuntimeError) as error:
        return {"refused": first_line(error)}


def figures(reference: Reference, model: nn.Module, seconds: float) -> dict[str, Any]:
    """What the table needs of the report."""
    report = reference.report(model, seconds).to_json()
    wanted = ("unlearned", "gaps", "average_gap", "tow", "seconds", "verdict")
    return {key: report[key] for key in wanted}


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--model", choices=tuple(FITS), default="resnet")
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=SEEDS)
    args = parser.parse_args()
    ledger = Ledger(Path(__file__).parent / "results" / f"classifiers-{args.model}.json")
    whole = load_data("fashion_mnist", args.root)
    data = in_memory(whole.train, range(TRAIN)), in_memory(whole.test, range(TEST))
    bench, rows = Bench(args.model, *data, ledger), candidates()
    ledger.require({"train": TRAIN, "test": TEST, "steps": STEPS, "fit": str(FITS[args.model]),
                    "worst_10": WORST})  # fmt: skip
    calibrated(bench, rows)
    for seed, name in product(args.seeds, SETS):
        run_setting(bench, rows, name, seed)
    for name in SETS:
        shown = titles(rows, name)
        if all((name, seed, row) in ledger for seed in SEEDS for row in shown):
            print(table(args.model, ledger, name, shown, SEEDS))
    missing = [name for name in KNOWN if name not in PEERS]
    print(f"Peers that are not installed: {', '.join(missing) or 'none'}.")


if __name__ == "__main__":
    main()
