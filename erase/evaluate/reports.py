"""What each kind of report holds, as types that write and read its JSON; shares and means."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from statistics import NormalDist, fmean
from types import NoneType, UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints

from scipy.integrate import trapezoid
from torch import Tensor

SCHEMA = 1
Z = NormalDist().inv_cdf(0.975)
DERIVED = {"forget_accuracy": "UA", "retain_accuracy": "IRA", "cross_retain_accuracy": "CRA"}
ACCURACIES = tuple(DERIVED)
GAPS = ("forget_accuracy", "retain_accuracy", "test_accuracy", "mia_efficacy")


@dataclass(frozen=True)
class Record:
    """A dataclass with its fields as JSON, by which it can be read too: `report["cost"]`.

    A field that is None by default is left out where it is None.
    """

    def to_json(self) -> dict[str, Any]:
        """All fields by name, records within as JSON too."""
        return {
            part.name: _to_json(value)
            for part in fields(self)
            if (value := getattr(self, part.name)) is not None or part.default is MISSING
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """What `to_json` gave, whatever stands beside it."""
        kinds = get_type_hints(cls)
        known = [field.name for field in fields(cls) if field.name in record]
        return cls(**{name: _from_json(kinds[name], record[name]) for name in known})

    def __getitem__(self, key: str) -> Any:
        return self.to_json()[key]


def _to_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _to_json(part) for key, part in value.items()}
    return value.to_json() if isinstance(value, Record) else value


def _from_json(kind: Any, value: Any) -> Any:
    """A value of a field's type: JSON knows no records, no tuples, and no keys but text."""
    if value is not None and isinstance(kind, UnionType):
        kind = next(part for part in get_args(kind) if part is not NoneType)
    if isinstance(kind, type) and issubclass(kind, Record):
        return value if value is None else kind.from_json(value)
    if get_origin(kind) is Mapping:
        key, part = get_args(kind)
        return {key(name): _from_json(part, one) for name, one in value.items()}
    return tuple(value) if isinstance(value, list) and get_origin(kind) is tuple else value


@dataclass(frozen=True)
class Figure(Record):
    """A value with its 95 % interval, where there is one, and the number of samples behind it."""

    value: float
    interval: tuple[float, float] | None = field(default=None, kw_only=True)
    n: int


@dataclass(frozen=True)
class Distance(Record):
    """A distance with its 95 % interval and the number of pictures of either set."""

    value: float
    interval: tuple[float, float]
    n: tuple[int, int]


@dataclass(frozen=True)
class Metrics(Record):
    """What a judge sees in one model's pictures; what each share is stands at `judge_drawn`.

    cross_retain_accuracy, companion_accuracy: where prompts name another kind. clip_score,
    nearest_retain_accuracy: by judges that read; the latter is of the drawn retained concepts
    `nearest` by name.
    """

    forget_accuracy: Figure
    forget_accuracy_by_concept: Mapping[str, Figure]
    retain_accuracy: Figure
    cross_retain_accuracy: Figure | None = None
    companion_accuracy: Figure | None = None
    clip_score: Figure | None = None
    nearest_retain_accuracy: Figure | None = None
    nearest: Sequence[str] | None = None

    @property
    def accuracies(self) -> dict[str, Figure]:
        """Those of ACCURACIES that there are."""
        return {name: figure for name in ACCURACIES if (figure := getattr(self, name))}


@dataclass(frozen=True)
class Cost(Record):
    """What a run took, in seconds and bytes of memory, and how large its artefact is."""

    seconds: float
    peak_memory_bytes: int
    artefact_bytes: int
    edited_parameters: int


@dataclass(frozen=True)
class Report(Record):
    """What one erasure did.

    metrics: of "base", "erased" and, where there is one, "oracle", in this order. distances: of the
    first two from the oracle, by side. retained_moved: how far the erasure moves what is read of
    each retained concept, beside what is read of it, where nothing but that changes;
    weights_moved: the same by weight, over all of them.
    """

    request: Mapping[str, Any]
    method: str
    protocol: Mapping[str, Any]
    metrics: Mapping[str, Metrics]
    cost: Cost
    distances: Mapping[str, Mapping[str, Distance]] = field(default_factory=dict)
    retained_moved: Mapping[str, float] | None = None
    weights_moved: Mapping[str, float] | None = None

    @property
    def derived(self) -> dict[str, float]:
        """UA = 1 - forget accuracy, IRA = retain accuracy, CRA = cross-retain accuracy."""
        found = {DERIVED[name]: f.value for name, f in self.metrics["erased"].accuracies.items()}
        return found | {"UA": round(1 - found["UA"], 4)}

    def to_json(self) -> dict[str, Any]:
        """As report.json has it: the erased model's figures, and the others' among them."""
        record = super().to_json()
        models, distances = record["metrics"], record.pop("distances")
        others = {"base": models["base"], "oracle": models.get("oracle")}
        others |= {"derived": self.derived, "distance_to_oracle": distances or None}
        accuracies = list(self.metrics["erased"].accuracies)
        changed = {"accuracies": accuracies, "metrics": models["erased"] | others}
        return {"schema": SCHEMA, **record, **changed}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""
        found = record["metrics"]
        models = {"base": found["base"], "erased": found, "oracle": found["oracle"]}
        metrics = {name: of_model for name, of_model in models.items() if of_model}
        distances = found["distance_to_oracle"] or {}
        return super().from_json({**record, "metrics": metrics, "distances": distances})


@dataclass(frozen=True)
class AttackFigures(Record):
    """How often the concept shows without an attack and with it, and at which budget.

    details: what else the attack tells; in JSON it stands beside the figures.
    """

    pre_asr: Figure
    asr: Figure
    forward_passes: int
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All in one."""
        record = super().to_json()
        return record | record.pop("details")

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""
        names = [field.name for field in fields(cls)]
        details = {name: value for name, value in record.items() if name not in names}
        return super().from_json({**record, "details": details})


@dataclass(frozen=True)
class AttackReport(Record):
    """What attacks brought back of one erasure.

    erasure: its method. attacks, oracle: of the erased model and, where there is one, the oracle,
    by attack. strength: how often the concept shows at these strengths, without attack. untried:
    attacks that were not made.
    """

    erasure: str | None
    concepts: Sequence[str]
    protocol: Mapping[str, Any]
    attacks: Mapping[str, AttackFigures]
    oracle: Mapping[str, AttackFigures]
    strength: Mapping[float, Figure]
    untried: Sequence[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """In a sentence, which attacks find no more than in a model that never learned."""
        untried = f"; not tried: {', '.join(self.untried)}" if self.untried else ""
        if not self.oracle:
            return (
                "how far this is from never having learned is not known, for no oracle was "
                f"attacked{untried}."
            )
        sides: dict[bool, list[str]] = {True: [], False: []}
        for name, found in self.attacks.items():
            share, (low, high) = found.asr.value, self.oracle[name].asr.interval or (0.0, 1.0)
            said = f"{name} {100 * share:.1f} % of [{100 * low:.1f}, {100 * high:.1f}]"
            sides[low <= share <= high].append(said)
        inside, outside = (", ".join(sides[side]) or "no attack" for side in (True, False))
        return (
            f"inside the interval of a model that never learned under {inside}; outside it under "
            f"{outside}{untried}."
        )

    def to_json(self) -> dict[str, Any]:
        """All fields, and the verdict that follows from them."""
        return super().to_json() | {"verdict": self.verdict}


@dataclass(frozen=True)
class LikelihoodRatioAttack(Record):
    """U-LiRA's outcome: the area under its ROC curve, 0.5 being ideal, and TPR at 1 % FPR."""

    auc: float
    tpr_at_1_percent_fpr: float
    shadows: int
    n: int


@dataclass(frozen=True)
class GapReport(Record):
    """How far an unlearned classifier is from one retrained without the forget set.

    original, retrained, unlearned: figures of each model. n: samples of the forget and the retain
    set, and of the test set those that either test accuracy is of. seconds: of unlearning, where it
    was timed. Accuracies and MIA-efficacy are in per cent, gaps in points. Test accuracy leaves out
    classes that are forgotten as a whole, whose own is `forgotten_class_test_accuracy`. KL is from
    Retrain, in nats a sample, on the forget set, agreement the share of equal answers there. The
    probe is a logistic regression on the test set's features, scored on the forget set, and missing
    where the test set has one class. `relearning_steps` are Adam steps (1e-4, batches of 256, at
    most 200) until 95 % of the original's forget accuracy, looked at after every pass through the
    forget set. ToW is the product of 1 - gap over forget, retain and test accuracy (Zhao et al.,
    NeurIPS 2024).
    """

    original: Mapping[str, float]
    retrained: Mapping[str, float]
    unlearned: Mapping[str, float]
    gaps: Mapping[str, float]
    average_gap: float
    tow: float
    verdict: str
    n: Mapping[str, int]
    seconds: float | None
    u_lira: LikelihoodRatioAttack | None = None
    request: str = ""
    method: str = ""
    protocol: Mapping[str, Any] = field(default_factory=dict)


def wilson_share(hits: Sequence[float]) -> Figure:
    """The share of hits with its 95 % Wilson interval, all rounded to four places.

    A hit is true or false or, of samples that hit in part, from 0 to 1; n such vary no more than n
    whole ones of the same share, so the interval is wide enough.
    """
    n, share = len(hits), fmean(hits)
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * (share * (1 - share) / n + Z**2 / (4 * n**2)) ** 0.5
    interval = round(max(0.0, middle - half), 4), round(min(1.0, middle + half), 4)
    return Figure(round(share, 4), n, interval=interval)


def mean_with_error(values: Tensor) -> dict[str, Any]:
    """The mean of values [n] with its standard error, if they are two or more."""
    error = float(values.std()) / len(values) ** 0.5 if len(values) > 1 else None
    return {"value": float(values.mean()), "standard_error": error, "n": len(values)}


def area_under(curve: Mapping[int, float]) -> float:
    """The mean height of the line through the values at rising steps, two or more, to 4 places."""
    steps = [int(step) for step in curve]  # JSON's are texts
    return round(float(trapezoid([*curve.values()], steps)) / (steps[-1] - steps[0]), 4)
