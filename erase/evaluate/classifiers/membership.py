"""Membership inference: can an attacker tell that the forget set was once trained on?"""

import numpy as np
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.svm import SVC
from torch import Tensor
from torch.distributions import Normal

from erase.core.seeds import seeded
from erase.evaluate.reports import LikelihoodRatioAttack

FALSE_POSITIVE_RATE = 0.01
MEMBERS_SEED = 0


def true_class_confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """The softmax probability of the true class [n]."""
    return logits.double().softmax(1).gather(1, labels[:, None])[:, 0]


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


def logit_scaled(logits: Tensor, labels: Tensor) -> Tensor:
    """log(p / (1 - p)) of the true class [n] (Carlini et al., S&P 2022)."""
    logits = logits.double()
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
    ours, theirs = (_gaussian(shadows) for shadows in (unlearned, retrained))
    scores = [ours.log_prob(values) - theirs.log_prob(values) for values in (target, oracle)]
    labels = np.concatenate([np.ones(len(target)), np.zeros(len(oracle))])
    joined = torch.cat(scores).numpy()
    false_rate, true_rate, _ = roc_curve(labels, joined)
    low = true_rate[false_rate <= FALSE_POSITIVE_RATE].max()
    return LikelihoodRatioAttack(
        float(roc_auc_score(labels, joined)), float(low), len(unlearned), len(target)
    )


def _gaussian(shadows: Tensor) -> Normal:
    return Normal(shadows.mean(0), shadows.var(0).mean().clamp_min(1e-12).sqrt())
