"""What the app is started with, and what its visitors may ask of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from erase.models.opening import OpeningConfig
from erase.support.config import Config, NotNegative, Positive


@dataclass(frozen=True)
class AppConfig(OpeningConfig):
    """The model the app shows, and who may use it how.

    Args:
        model: "emoji", a pipeline folder, hub id or file of weights; visitors cannot open another.
        judge: an open_clip name; by default the bundled judge, for models with a catalogue.
        erasures: erasure folders to offer from the start.
        oracle: a pipeline trained without their concept, to attack and draw beside them.
        public: strangers may come: small limits, and names of files and hubs taken from nobody.
        host: the address to serve at.
        port: the port to serve at, 0 for the first free one from 7860.
    """

    model: str = "emoji"
    judge: str = ""
    erasures: Sequence[str] = ()
    oracle: str = ""
    public: bool = False
    host: str = "127.0.0.1"
    port: NotNegative[int] = 0


@dataclass(frozen=True)
class Limits(Config):
    """The most that one request may ask for.

    letters: of a prompt or name. steps: of sampling. effort: of any whole number among a method's
    or attack's options that is not its default. pictures: judged of each set. concepts:
    forgotten at once. seconds: of a job. erasures: a visitor
    may keep. visitors: with erasures at once; the longest away makes room. queue: requests waiting.
    """

    letters: Positive[int] = 2_000
    steps: Positive[int] = 200
    effort: Positive[int] = 100_000
    pictures: Positive[int] = 256
    concepts: Positive[int] = 64
    seconds: Positive[int] = 7 * 24 * 3600
    erasures: Positive[int] = 64
    visitors: Positive[int] = 64
    queue: Positive[int] = 64


PUBLIC = Limits(
    letters=300, steps=50, effort=300, pictures=48, concepts=8, seconds=900, erasures=4,
    visitors=32, queue=24,
)  # fmt: skip


def limits_of(config: AppConfig) -> Limits:
    """The limits that go with how the app was started."""
    return PUBLIC if config.public else Limits()


def require_within(name: str, value: float | None, least: float, most: float) -> None:
    """Raise ValueError, in one sentence, for a value that is missing or out of its range."""
    if value is None:
        raise ValueError(f"{name} is empty; give {least:g} to {most:g}.")
    if not least <= value <= most:
        raise ValueError(f"{name} is {value:g}; give {least:g} to {most:g}.")


def require_short(name: str, text: str | None, limits: Limits) -> None:
    """Raise ValueError for a text that is empty or too long."""
    if not text or not text.strip():
        raise ValueError(f"The {name} is empty; write one.")
    if len(text) > limits.letters:
        raise ValueError(
            f"The {name} has {len(text)} letters; at most {limits.letters} are read here."
        )
