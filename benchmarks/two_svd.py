"""SVD class forgetting beside a straightforward implementation of the same equations.

Run: `python benchmarks/two_svd.py --root FOLDER [--model vit|resnet18]`, with FOLDER as
benchmarks/classifiers.py has it. Both get the same fitted model, forget class and samples. The
straightforward way keeps what every layer reads, stacks it, and takes two SVDs a layer; both read
the same rows. Prints seconds, their ratio, and how far weights and predictions are apart.
"""

import argparse
import copy
import time
from pathlib import Path

import torch
from classifiers import CLASSES, FITS, TEST, TRAIN, Bench
from decoded import in_memory
from ledger import Ledger
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from erase.methods.projection import ProjectionConfig, projection
from erase.tasks.classification.datasets import load_data
from erase.tasks.classification.fit import FitConfig, fit, outputs_of
from erase.tasks.classification.task import ALL, ClassificationTask

WHOLE = "resnet18"
FORGET_ALPHA, RETAIN_ALPHA, SAMPLES, REPEATS = 3.0, 100.0, 1024, 3


def two_svds(task: ClassificationTask) -> None:
    """W (I - P_f + P_f P_r)^T for every layer of the task's model, in place."""
    stacked: dict[tuple[str, str], list[Tensor]] = {}
    for which in ("forget", "retain"):
        task.record_inputs(
            which, ALL,
            lambda site, rows, _, which=which: stacked.setdefault((which, site), []).append(rows),
            SAMPLES,
        )  # fmt: skip
    weights = task.editable()
    for site, (name,) in task.sites(ALL).items():
        forget = scaled_projection(torch.cat(stacked["forget", site]), FORGET_ALPHA)
        retain = scaled_projection(torch.cat(stacked["retain", site]), RETAIN_ALPHA)
        weight = weights[name].detach()
        flat = weight.flatten(1)
        kept = torch.eye(flat.shape[1]) - forget + forget @ retain
        weight.copy_((flat @ kept.T).view_as(weight))


def scaled_projection(activations: Tensor, alpha: float) -> Tensor:
    """U diag(alpha r / ((alpha - 1) r + 1)) U^T, r the energy shares of the activations [n, d]."""
    left, singular, _ = torch.linalg.svd(activations.T, full_matrices=False)
    share = singular.square() / singular.square().sum()
    return left * (alpha * share / ((alpha - 1) * share + 1)) @ left.T


def ours(task: ClassificationTask) -> None:
    """The library's."""
    config = ProjectionConfig(
        [ALL], "scaled", forget_alpha=FORGET_ALPHA, retain_alpha=RETAIN_ALPHA, samples=SAMPLES
    )  # fmt: skip
    projection(task, config).apply(task.components)


def whole_resnet(train: TensorDataset) -> nn.Module:
    """timm's ResNet-18 at its own width, fitted for two epochs."""
    torch.manual_seed(0)
    return fit(ResNet(BasicBlock, (2, 2, 2, 2), 10, 1), train, FitConfig(2), 0)


def main() -> None:
    """Both ways in turn, several times, on fresh copies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--model", choices=(*FITS, WHOLE), default="resnet")
    args = parser.parse_args()
    whole = load_data("fashion_mnist", args.root)
    train, test = in_memory(whole.train, range(TRAIN)), in_memory(whole.test, range(TEST))
    small = "resnet" if args.model == WHOLE else args.model
    bench = Bench(small, train, test, Ledger(Path("unused")))
    original = whole_resnet(train) if args.model == WHOLE else bench.original(0)
    forget = bench.forget_set(f"class_{CLASSES[0]}", original, train, 0)
    seconds: dict[str, list[float]] = {"two SVDs": [], "ours": []}
    models: dict[str, nn.Module] = {}
    for _ in range(REPEATS):
        for name, way in (("two SVDs", two_svds), ("ours", ours)):
            task = bench.task(copy.deepcopy(original), train, forget, 0)
            started = time.perf_counter()
            with torch.no_grad():
                way(task)
            seconds[name].append(time.perf_counter() - started)
            models[name] = task.components["model"]
    least = {name: min(values) for name, values in seconds.items()}
    one, other = (outputs_of(model, test) for model in models.values())
    same = float((one.logits.argmax(1) == other.logits.argmax(1)).double().mean())
    apart = float((one.logits - other.logits).abs().max() / one.logits.abs().max())
    print(
        f"{args.model}: two SVDs {least['two SVDs']:.2f} s, ours {least['ours']:.2f} s (least of "
        f"{REPEATS}), ratio {least['two SVDs'] / least['ours']:.1f}; equal predictions "
        f"{100 * same:.2f} % of {TEST}, logits apart by {apart:.1e} of the largest"
    )


if __name__ == "__main__":
    main()
