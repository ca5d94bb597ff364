import numpy as np
import pytest
import torch
from sklearn.svm import SVC

from erase.evaluate.classifiers.gaps import (
    logit_scaled,
    mia_efficacy,
    true_class_confidence,
    u_lira,
)
from erase.tasks.classification.fit import Outputs


def test_mia_efficacy_is_the_fields_formula():
    rng = np.random.default_rng(0)
    retain, test, forget = (rng.beta(a, 2, n) for a, n in ((9, 120), (3, 80), (5, 40)))
    members = retain[torch.randperm(120, generator=torch.Generator().manual_seed(0))[:80]]
    attacker = SVC(C=3, gamma="auto", kernel="rbf")
    attacker.fit(np.concatenate([members, test]).reshape(-1, 1), np.r_[np.ones(80), np.zeros(80)])
    expected = np.mean(attacker.predict(forget.reshape(-1, 1)) == 0)
    tensors = (torch.tensor(part) for part in (retain, test, forget))
    assert mia_efficacy(*tensors) == expected
    assert 0 < expected < 1


def test_confidence_and_its_logit_agree():
    logits, labels = torch.randn(20, 5) * 4, torch.randint(5, (20,))
    outputs = Outputs(logits, labels, logits)
    confidence = true_class_confidence(outputs)
    assert torch.allclose(confidence.logit(), logit_scaled(outputs), atol=1e-6)


def test_u_lira_is_at_chance_for_the_oracle_and_certain_for_the_original():
    generator = torch.Generator().manual_seed(0)

    def models(count, mean):
        return mean + torch.randn(count, 400, generator=generator).double()

    out = models(8, 0.0)
    same = u_lira(models(8, 0.0), out, models(1, 0.0)[0], models(1, 0.0)[0])
    assert abs(same.auc - 0.5) < 0.1
    apart = u_lira(models(8, 9.0), out, models(1, 9.0)[0], models(1, 0.0)[0])
    assert apart.auc > 0.999
    assert apart.tpr_at_1_percent_fpr > 0.99


def test_one_shadow_is_refused():
    one = torch.zeros(1, 3)
    with pytest.raises(ValueError, match="at least 2 shadows"):
        u_lira(one, one, one[0], one[0])
