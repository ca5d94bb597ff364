"""How much of the head's input a contrastive projection should take out to forget a class.

Run: `python benchmarks/class_pilots.py --root FOLDER --model vit`. On five pilot seeds, none of
them in the tables, whose models see nine tenths of the same samples, class 0 is forgotten at every
rank, strength and number of samples; printed are the forget accuracy and the points of retain
accuracy gained, means over the seeds on those samples, and which setting keeps most of what forgets
to under 1 %. The row of classifier_rows.py that names five pilot seeds is that one's for the ViT.
"""

import argparse
from collections import defaultdict
from itertools import product
from pathlib import Path
from statistics import fmean

import torch
from classifiers import CLASSES, FITS, TEST, TRAIN, Bench
from decoded import in_memory
from torch.utils.data import TensorDataset

from erase.methods import get_method
from erase.methods.projection import ProjectionConfig
from erase.runs.calibrate import hold_out
from erase.tasks.classification.datasets import load_data
from erase.tasks.classification.fit import outputs_of
from erase.tasks.classification.task import HEAD, ClassificationTask

SEEDS, LIMIT = range(100, 105), 1.0
GRID = tuple(product((3, 4, 5), (1.05, 1.1, 1.15, 1.2), (1024, 4000)))


def accuracies(task: ClassificationTask) -> tuple[float, float]:
    """Of the model as it is, on the forget and on the retain set, in per cent."""
    outputs = outputs_of(task.components["model"], task.dataset)
    gone = torch.zeros(len(task.dataset), dtype=torch.bool)
    gone[task.forget] = True
    return outputs.accuracy(gone), outputs.accuracy(~gone)


def main() -> None:
    """Print the grid and its best setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--model", choices=tuple(FITS), default="vit")
    args = parser.parse_args()
    whole = load_data("fashion_mnist", args.root)
    data = in_memory(whole.train, range(TRAIN)), in_memory(whole.test, range(TEST))
    bench, found = Bench(args.model, *data), defaultdict(list)
    for seed in SEEDS:
        used, _ = hold_out(range(TRAIN), 0.1, seed)
        part = TensorDataset(*data[0][used])
        forget = (part.tensors[1] == CLASSES[0]).nonzero().flatten().tolist()
        task = bench.task(bench.trained(part, seed), part, forget, seed)
        _, before = accuracies(task)
        for setting in GRID:
            rank, strength, samples = setting
            config = ProjectionConfig(
                [HEAD], "contrastive", rank=rank, strength=strength, samples=samples
            )
            with get_method("projection")(task, config).apply(task.components):
                gone, kept = accuracies(task)
            found[setting].append((gone, kept - before))
    means = {setting: tuple(map(fmean, zip(*of, strict=True))) for setting, of in found.items()}
    for setting, (gone, gained) in means.items():
        print("rank {}, strength {}, samples {}:".format(*setting), f"{gone:.2f} %, {gained:+.2f}")
    enough = [setting for setting in GRID if means[setting][0] < LIMIT]
    best = max(enough, key=lambda setting: means[setting][1], default=None)
    print(f"best: {best}" if best else f"no setting forgets to under {LIMIT} %")


if __name__ == "__main__":
    main()
