"""What the app is started with, and what its visitors may ask of it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from erase.models.opening import OpeningConfig
from erase.support.config import LARGEST, Config, Positive, Within
from erase.support.errors import cut

NAMED = 12  # choices that a sentence lists


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
    port: Annotated[int, Within(lambda port: 0 <= port < 1 << 16, "0 to 65535")] = 0


@dataclass(frozen=True)
class Limits(Config):
    """The most that one request may ask for.

    letters: of a prompt or name. steps: of sampling. effort: of any whole number among a method's
    or attack's options that is not its default. pictures: judged of each set. concepts:
    forgotten at once. seconds: of a job. erasures: a visitor
    may keep. visitors: with erasures at once; the longest away makes room. queue: requests waiting.
    jobs: of one visitor, under way or waiting.
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
    jobs: Positive[int] = 4


PUBLIC = Limits(
    letters=300, steps=50, effort=300, pictures=48, concepts=8, seconds=900, erasures=4,
    visitors=32, queue=96, jobs=2,
)  # fmt: skip


def limits_of(config: AppConfig) -> Limits:
    """The limits that go with how the app was started."""
    return PUBLIC if config.public else Limits()


def require_within(name: str, value: float | None, least: float, most: float) -> None:
    """Raise ValueError, in one sentence, for a value that is missing or out of its range."""
    if value is None:
        raise ValueError(f"{name} is empty; give {least:g} to {most:g}.")
    if not least <= value <= most:
        raise ValueError(f"{name} is {value:g}; give {least:g} to {most:.10g}.")


def require_short(name: str, text: str | None, limits: Limits) -> None:
    """Raise ValueError for a text that is empty or too long."""
    if not text or not text.strip():
        raise ValueError(f"The {name} is empty; write one.")
    if len(text) > limits.letters:
        raise ValueError(
            f"The {name} has {len(text)} letters; at most {limits.letters} are read here."
        )


def require_one_of(name: str, value: str | None, known: Collection[str]) -> None:
    """Raise ValueError, which names some, for a value that is not among those known."""
    if value not in known:
        some = ", ".join(list(known)[:NAMED])
        raise ValueError(f"{name} is {cut(str(value), 40)!r}; choose of {some}.")


def require_types(values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Raise ValueError for a value that is not of the type its name is to have."""
    for name, value in values.items():
        hint = hints.get(name, Any)
        if not _is(value, hint):
            kind = hint.__name__ if isinstance(hint, type) else hint
            raise ValueError(f"{name} is {cut(repr(value), 40)}; give a value of type {kind}.")


def _is(value: Any, hint: Any) -> bool:
    if parts := get_args(hint):
        if get_origin(hint) is list:
            return isinstance(value, list) and all(_is(part, parts[0]) for part in value)
        return any(_is(value, part) for part in parts)
    if hint in (int, float):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and abs(value) <= LARGEST and (hint is float or value == int(value))
    return hint is Any or isinstance(value, hint)
