"""What each kind of report holds, as types that read and write its JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

Part = TypeVar("Part", "Figure", "AttackFigures")
SCHEMA = 1
DERIVED = {"forget_accuracy": "UA", "retain_accuracy": "IRA", "cross_retain_accuracy": "CRA"}
ACCURACIES, BY_CONCEPT = tuple(DERIVED), "forget_accuracy_by_concept"
GAPS = ("forget_accuracy", "retain_accuracy", "test_accuracy", "mia_efficacy")


@dataclass(frozen=True)
class Figure:
    """A value, the number of samples behind it, of a distance those of either set, and, where
    there is one, its 95 % interval."""

    value: float
    n: int | tuple[int, int]
    interval: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """Its fields, the interval where there is one."""
        interval = {"interval": self.interval} if self.interval else {}
        return {"value": self.value, **interval, "n": self.n}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Figure":
        """What `to_json` gave."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in record.items()})


def _to_json(parts: Mapping[Any, Part]) -> dict[Any, Any]:
    return {name: part.to_json() for name, part in parts.items()}


def _from_json(kind: type[Part], record: Mapping[str, Any]) -> dict[str, Part]:
    return {name: kind.from_json(part) for name, part in record.items()}


@dataclass(frozen=True)
class Metrics:
    """What a judge sees in one model's pictures.

    accuracies: of ACCURACIES those that the prompts have an answer to. by_concept: the forget
    accuracy of each concept. clip_score: of retained prompts, by judges that read.
    """

    accuracies: Mapping[str, Figure]
    by_concept: Mapping[str, Figure]
    clip_score: Figure | None = None

    def to_json(self) -> dict[str, Any]:
        """All figures by name."""
        score = {"clip_score": self.clip_score.to_json()} if self.clip_score else {}
        return _to_json(self.accuracies) | {BY_CONCEPT: _to_json(self.by_concept)} | score

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Metrics":
        """What `to_json` gave, whatever stands beside it."""
        known = {name: record[name] for name in ACCURACIES if name in record}
        score = Figure.from_json(record["clip_score"]) if "clip_score" in record else None
        return cls(_from_json(Figure, known), _from_json(Figure, record[BY_CONCEPT]), score)


@dataclass(frozen=True)
class Cost:
    """What a run took, in seconds and bytes of memory, and how large its artefact is."""

    seconds: float
    peak_memory_bytes: int
    artefact_bytes: int
    edited_parameters: int


class Readable:
    """A report that can be read by key too, as its JSON is."""

    def to_json(self) -> dict[str, Any]:
        """The whole report."""
        raise NotImplementedError

    def __getitem__(self, key: str) -> Any:
        return self.to_json()[key]


@dataclass(frozen=True)
class Report(Readable):
    """What one erasure did.

    metrics: of "base", "erased" and, where there is one, "oracle", in this order. distances: of the
    first two from the oracle, by side.
    """

    request: Mapping[str, Any]
    method: str
    protocol: Mapping[str, Any]
    metrics: Mapping[str, Metrics]
    cost: Cost
    distances: Mapping[str, Mapping[str, Figure]] = field(default_factory=dict)

    @property
    def derived(self) -> dict[str, float]:
        """UA = 1 - forget accuracy, IRA = retain accuracy, CRA = cross-retain accuracy."""
        found = {DERIVED[name]: f.value for name, f in self.metrics["erased"].accuracies.items()}
        return found | {"UA": round(1 - found["UA"], 4)}

    def to_json(self) -> dict[str, Any]:
        """As report.json has it: the erased model's figures, with the others' among them."""
        metrics = _to_json(self.metrics)
        beside = {
            "derived": self.derived,
            "base": metrics["base"],
            "oracle": metrics.get("oracle"),
            "distance_to_oracle": {n: _to_json(d) for n, d in self.distances.items()} or None,
        }
        return {
            "schema": SCHEMA,
            "request": self.request,
            "method": self.method,
            "protocol": self.protocol,
            "accuracies": list(self.metrics["erased"].accuracies),
            "metrics": metrics["erased"] | beside,
            "cost": asdict(self.cost),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Report":
        """What `to_json` gave."""
        erased = record["metrics"]
        models = {"base": erased["base"], "erased": erased, "oracle": erased["oracle"]}
        distances = erased["distance_to_oracle"] or {}
        return cls(
            record["request"],
            record["method"],
            record["protocol"],
            {name: Metrics.from_json(found) for name, found in models.items() if found},
            Cost(**record["cost"]),
            {name: _from_json(Figure, sides) for name, sides in distances.items()},
        )


@dataclass(frozen=True)
class AttackFigures:
    """How often the concept shows without an attack and with it, and at which budget.

    details: what else the attack tells, as JSON.
    """

    pre_asr: Figure
    asr: Figure
    forward_passes: int
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All in one."""
        shares = {"pre_asr": self.pre_asr.to_json(), "asr": self.asr.to_json()}
        return shares | {"forward_passes": self.forward_passes} | self.details

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "AttackFigures":
        """What `to_json` gave."""
        details = dict(record)
        shares = [Figure.from_json(details.pop(name)) for name in ("pre_asr", "asr")]
        return cls(*shares, details.pop("forward_passes"), details)


@dataclass(frozen=True)
class AttackReport(Readable):
    """What attacks brought back of one erasure.

    erasure: its method. attacks, oracle: of the erased model and, where there is one, the oracle,
    by attack. strength: how often the concept shows at these strengths, without attack.
    """

    erasure: str | None
    concepts: Sequence[str]
    protocol: Mapping[str, Any]
    attacks: Mapping[str, AttackFigures]
    oracle: Mapping[str, AttackFigures]
    strength: Mapping[float, Figure]

    def to_json(self) -> dict[str, Any]:
        """As attacks.json has it."""
        return {
            "erasure": self.erasure,
            "concepts": self.concepts,
            "protocol": self.protocol,
            "attacks": _to_json(self.attacks),
            "oracle": _to_json(self.oracle),
            "strength": _to_json(self.strength),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "AttackReport":
        """What `to_json` gave."""
        strength = _from_json(Figure, record["strength"])
        parts = {
            "attacks": _from_json(AttackFigures, record["attacks"]),
            "oracle": _from_json(AttackFigures, record["oracle"]),
            "strength": {float(scale): figure for scale, figure in strength.items()},
        }
        return cls(**{**record, **parts})


@dataclass(frozen=True)
class LikelihoodRatioAttack:
    """U-LiRA's outcome: the area under its ROC curve, 0.5 being ideal, and TPR at 1 % FPR."""

    auc: float
    tpr_at_1_percent_fpr: float
    shadows: int
    n: int


@dataclass(frozen=True)
class GapReport(Readable):
    """How far an unlearned classifier is from one retrained without the forget set.

    What each figure is stands at `gap_report`. original, retrained, unlearned: figures of each
    model. n: samples of the forget and the retain set. seconds: of unlearning, where it was timed.
    """

    original: Mapping[str, float]
    retrained: Mapping[str, float]
    unlearned: Mapping[str, float]
    gaps: Mapping[str, float]
    average_gap: float
    tow: float
    verdict: str
    n: Mapping[str, int]
    seconds: float | None = None
    u_lira: LikelihoodRatioAttack | None = None
    request: str = ""
    method: str = ""
    protocol: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As report.json has it: U-LiRA only where shadows were trained."""
        record = asdict(self)
        return record if self.u_lira else {k: v for k, v in record.items() if k != "u_lira"}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "GapReport":
        """What `to_json` gave."""
        found = record.get("u_lira")
        return cls(**{**record, "u_lira": LikelihoodRatioAttack(**found) if found else None})
