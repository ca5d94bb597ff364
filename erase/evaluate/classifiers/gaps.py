"""How far an unlearned classifier is from one retrained without the forget set.

Among the figures is membership inference: can an attacker tell what was once trained on?
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.svm import SVC
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset

from erase.core.process import own_settings
from erase.core.seeds import seeded
from erase.evaluate.reports import GAPS, GapReport, LikelihoodRatioAttack
from erase.tasks.classification.fit import BATCH, Outputs, logits_of, outputs_of
from erase.tasks.classification.rows import labels_of

RELEARN_RATE, RELEARN_LIMIT, RELEARNED = 1e-4, 200, 0.95
CLOSE = 2.0
FALSE_POSITIVE_RATE, MEMBERS_SEED = 0.01, 0


@dataclass(frozen=True)
class Split:
    """A training set's forget and retain indices, and a test set that holds a retained class."""

    train: Dataset
    forget: Sequence[int]
    retain: Sequence[int]
    test: Dataset

    def __post_init__(self) -> None:
        tested, kept = labels_of(self.test), labels_of(Subset(self.train, self.retain))
        if not torch.isin(tested, kept).any():
            raise ValueError(f"None of the {len(tested)} samples to measure on is of a class that "
                             "is retained, so that nothing tells what should stay; add some, or "
                             "forget less.")  # fmt: skip


@dataclass(frozen=True)
class Shadows:
    """Scaled confidences [k, n] in the forget set of k unlearned and k retrained shadow models."""

    unlearned: Tensor
    retrained: Tensor


@dataclass(frozen=True)
class _SplitOutputs:
    """One model's outputs on the three sets."""

    forget: Outputs
    retain: Outputs
    test: Outputs


class Reference:
    """The original and Retrain, measured once for any number of unlearned models beside them."""

    @own_settings()
    def __init__(self, original: nn.Module, retrained: nn.Module, split: Split):
        self._split = split
        view, self._oracle = (_outputs_on_splits(one, split) for one in (original, retrained))
        self._goal = RELEARNED * view.forget.accuracy()
        self.rows = {"original": self._row(original, view)}
        self.rows["retrained"] = self._row(retrained, self._oracle)

    @own_settings()
    def report(
        self, unlearned: nn.Module, seconds: float | None = None, shadows: Shadows | None = None
    ) -> GapReport:
        """All figures of the three models, the unlearned one's gaps to Retrain, and a verdict.

        U-LiRA is there if shadows are.
        """
        view = _outputs_on_splits(unlearned, self._split)
        rows = self.rows | {"unlearned": self._row(unlearned, view)}
        gaps = {key: rows["unlearned"][key] - rows["retrained"][key] for key in GAPS}
        attacked = (logit_scaled(one.forget) for one in (view, self._oracle))
        kept = int(torch.isin(view.test.labels, view.retain.labels).sum())
        sizes = len(self._split.forget), len(self._split.retain), kept, len(view.test.labels) - kept
        return GapReport(
            rows["original"],
            rows["retrained"],
            rows["unlearned"],
            gaps=gaps,
            average_gap=sum(map(abs, gaps.values())) / len(gaps),
            tow=math.prod(1 - abs(gaps[key]) / 100 for key in GAPS[:3]),
            verdict=verdict(rows),
            n=dict(zip(("forget", "retain", "test", "forgotten_class_test"), sizes, strict=True)),
            seconds=seconds,
            u_lira=u_lira(shadows.unlearned, shadows.retrained, *attacked) if shadows else None,
        )

    def _row(self, model: nn.Module, view: _SplitOutputs) -> dict[str, float]:
        forgotten = Subset(self._split.train, list(self._split.forget))
        gone = ~torch.isin(view.test.labels, view.retain.labels)
        ours, theirs = (v.forget.logits.log_softmax(1) for v in (view, self._oracle))
        divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        learns = len(view.test.labels.unique()) > 1
        figures = {
            **_main_figures(view),
            "kl_to_retrained": float(divergence),
            "agreement": 100 * float((ours.argmax(1) == theirs.argmax(1)).double().mean()),
            **({"probe_accuracy": probe_accuracy(view.test, view.forget)} if learns else {}),
            "relearning_steps": relearning_steps(model, forgotten, self._goal),
        }
        if gone.any():
            figures["forgotten_class_test_accuracy"] = view.test.accuracy(gone)
        return figures


def gap_figures(model: nn.Module, split: Split) -> dict[str, float]:
    """What the average gap is of: the three accuracies and MIA-efficacy, in per cent."""
    return _main_figures(_outputs_on_splits(model, split))


def _main_figures(view: _SplitOutputs) -> dict[str, float]:
    forget, retain, test = map(true_class_confidence, (view.forget, view.retain, view.test))
    kept = torch.isin(view.test.labels, view.retain.labels)
    return {
        "forget_accuracy": view.forget.accuracy(),
        "retain_accuracy": view.retain.accuracy(),
        "test_accuracy": view.test.accuracy(kept),
        "mia_efficacy": 100 * mia_efficacy(retain, test[kept], forget),
    }


def _outputs_on_splits(model: nn.Module, split: Split) -> _SplitOutputs:
    forget, retain = (Subset(split.train, list(part)) for part in (split.forget, split.retain))
    return _SplitOutputs(*(outputs_of(model, part) for part in (forget, retain, split.test)))


def probe_accuracy(learnt_on: Outputs, scored_on: Outputs) -> float:
    """Accuracy, in per cent, of a linear classifier on frozen features."""
    probe = LogisticRegression(max_iter=500)
    scale = learnt_on.features.std().clamp_min(1e-12)
    probe.fit((learnt_on.features / scale).numpy(), learnt_on.labels.numpy())
    return 100 * float(probe.score((scored_on.features / scale).numpy(), scored_on.labels.numpy()))


@own_settings()
def relearning_steps(model: nn.Module, forget: Dataset, goal: float) -> int:
    """Adam steps on batches of the forget set until its accuracy is `goal` per cent, or 200."""
    learner = copy.deepcopy(model).eval()
    optimizer = torch.optim.Adam(learner.parameters(), RELEARN_RATE)
    loader = DataLoader(forget, BATCH, shuffle=True, generator=seeded(0))
    steps = 0
    while outputs_of(learner, forget).accuracy() < goal:
        for inputs, labels in loader:
            if steps == RELEARN_LIMIT:
                return steps
            logits = logits_of(learner, inputs)
            optimizer.zero_grad()
            F.cross_entropy(logits, labels.to(logits.device)).backward()
            optimizer.step()
            steps += 1
    return steps


def verdict(rows: Mapping[str, Mapping[str, float]]) -> str:
    """One sentence on an unlearned model beside the original and Retrain; 2 points are near."""
    ours, retrained, original = (rows[name] for name in ("unlearned", "retrained", "original"))
    gaps = {key: ours[key] - retrained[key] for key in GAPS}
    said = []
    if gaps["forget_accuracy"] > CLOSE:
        same = abs(ours["forget_accuracy"] - original["forget_accuracy"]) <= CLOSE
        said.append(
            "indistinguishable from the original on the forget set" if same else "under-forgets"
        )
    elif gaps["forget_accuracy"] < -CLOSE:
        said.append("over-forgets")
    if min(gaps["retain_accuracy"], gaps["test_accuracy"]) < -CLOSE:
        said.append("damages what should stay")
    elif max(gaps["retain_accuracy"], gaps["test_accuracy"]) > CLOSE:
        said.append("fits what stays better than Retrain")
    if gaps["mia_efficacy"] > CLOSE:
        said.append("its forget set looks less like training data than Retrain's")
    elif gaps["mia_efficacy"] < -CLOSE:
        said.append("its forget set still looks like training data")
    return "; ".join(said) or f"within {CLOSE:g} points of Retrain in accuracies and MIA-efficacy"


def true_class_confidence(outputs: Outputs) -> Tensor:
    """The softmax probability of the true class [n]."""
    return outputs.logits.double().softmax(1).gather(1, outputs.labels[:, None])[:, 0]


def mia_efficacy(retain: Tensor, test: Tensor, forget: Tensor) -> float:
    """The share of the forget set that an attacker takes for data never trained on.

    All three are true-class confidences [n]. The attacker is an SVC(C=3, gamma="auto") that learnt
    members from len(test) retained samples, drawn with a fixed seed, and non-members from the test
    set: the field's MIA-efficacy (Jia et al., NeurIPS 2023; SalUn's tables).
    """
    drawn = torch.randperm(len(retain), generator=seeded(MEMBERS_SEED))
    members = retain[drawn[: len(test)]]
    known = torch.cat([members, test]).numpy()[:, None]
    is_member = np.concatenate([np.ones(len(members)), np.zeros(len(test))])
    attacker = SVC(C=3, gamma="auto", kernel="rbf").fit(known, is_member)
    return float((attacker.predict(forget.numpy()[:, None]) == 0).mean())


def logit_scaled(outputs: Outputs) -> Tensor:
    """log(p / (1 - p)) of the true class [n] (Carlini et al., S&P 2022); U-LiRA compares it."""
    logits, labels = outputs.logits.double(), outputs.labels
    own = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
    return own - others


def u_lira(
    unlearned: Tensor, retrained: Tensor, target: Tensor, oracle: Tensor
) -> LikelihoodRatioAttack:
    """Tell forgotten samples of an unlearned model from those of a retrained one.

    unlearned, retrained: logit-scaled confidences [shadows, n] of the forget set by shadow models
    of either history; target, oracle: [n] by the model under attack and by a retrained one that is
    no shadow. Every sample has a Gaussian of its own for each history, variances being shared by
    all samples (Kurmanji et al., NeurIPS 2023; Hayes et al., SaTML 2025). Raises ValueError for
    fewer than two shadows.
    """
    if len(unlearned) < 2 or len(retrained) < 2:
        raise ValueError("U-LiRA needs at least 2 shadows of each history; give more.")
    ours, theirs = (
        Normal(shadows.mean(0), shadows.var(0).mean().clamp_min(1e-12).sqrt())
        for shadows in (unlearned, retrained)
    )
    scores = [ours.log_prob(values) - theirs.log_prob(values) for values in (target, oracle)]
    labels = np.concatenate([np.ones(len(target)), np.zeros(len(oracle))])
    joined = torch.cat(scores).numpy()
    false_rate, true_rate, _ = roc_curve(labels, joined)
    low = true_rate[false_rate <= FALSE_POSITIVE_RATE].max()
    return LikelihoodRatioAttack(
        float(roc_auc_score(labels, joined)), float(low), len(unlearned), len(target)
    )
