"""Which layers of denoisers hear the prompt, and the proof that they are all of its way in."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from erase.core.names import canonical, own_modules
from erase.models.listening import Draw, Listener, same

LAST = 2  # layers that are tried alone, from the end


class TextLayers:
    """The layers of some denoisers, of whatever class, that hear text and no picture.

    prompts: two of one length. call: which of several calls in a step is the prompt's.
    """

    def __init__(
        self, listener: Listener, denoisers: Sequence[str], prompts: tuple[str, str], call: int
    ):
        self._listener, self._prompts, self._call = listener, prompts, call
        self._paths = {
            canonical(name, path): layer
            for name in denoisers
            for path, layer in own_modules(getattr(listener.pipeline, name))
            if path and any(True for _ in layer.parameters(recurse=False))
        }
        one, other = prompts
        self.drawn = listener.draw(one, layers=self._paths)
        self._noise = listener.draw(one, 7, layers=self._paths)
        self._other = listener.draw(other, layers=self._paths)

    def heard(self, timed: bool) -> list[str]:
        """The layers that hear the prompt and no noise, and the time if `timed`, else not."""
        found = []
        for name in self.drawn.read:
            mine, noise, other = (
                self._calls(name, draw) for draw in (self.drawn, self._noise, self._other)
            )
            alone = mine and mine == noise and mine != other
            if alone and timed == any(call != mine[0] for call in mine):
                found.append(name)
        return found

    def _calls(self, layer: str, draw: Draw) -> list[list[str]]:
        """What a layer read in each of the prompt's calls."""
        calls = draw.of(layer.partition(".")[0])
        places: list[int] = []
        for i, call in enumerate(calls):
            again = i > 0 and call.step == calls[i - 1].step
            places.append(places[-1] + 1 if again else 0)
        read = draw.read.get(layer, [])
        pairs = zip(places, read, strict=False)
        return [one for place, one in pairs if place == self._call and one]

    def entries(self) -> dict[str, list[str]]:
        """By place, weights that carry all of the prompt, and read nothing that others of them say.

        Of layers that read the same there is one place; there is none where no weight multiplies
        what is read, as of a table of words. It is proved by exchange: a draw in which they say
        what they do for another prompt is that prompt's, bit for bit. Raises ValueError if that
        is not so of all layers that hear text alone.
        """
        text = self.heard(timed=False)
        layers = [name for name in text if isinstance(self._paths[name], nn.Linear)]
        said, draw = self._exchanged(layers)
        if not self._is_other(draw):
            if not text or not self._is_other(self._exchanged(text)[1]):
                raise ValueError(
                    "another prompt's text, put into all layers that hear text alone "
                    f"({starred(text)}), does not draw that prompt's picture"
                )
            return {}
        first = [name for name in layers if draw.read[name] != self._other.read[name]]
        carried = self._is_other(self._drawn_with(first, said))
        places = self._places(first if carried else layers)
        if len(places) > 1:  # where one of the last layers carries all by itself, it will do
            for name in reversed(layers[-LAST:]):
                if self._is_other(self._drawn_with([name], said)):
                    return self._places([name])
        return places

    def _is_other(self, draw: Draw) -> bool:
        """Whether a draw is the other prompt's, bit for bit."""
        return same(draw.result, self._other.result)

    def _places(self, names: Sequence[str]) -> dict[str, list[str]]:
        places: dict[str, list[str]] = {}
        for name in names:
            places.setdefault(str(self.drawn.read[name]), []).append(f"{name}.weight")
        return {weights[0].removesuffix(".weight"): weights for weights in places.values()}

    def _exchanged(self, names: Sequence[str]) -> tuple[Mapping[str, list[Any]], Draw]:
        """What layers say of the other prompt, and a draw of the first where they say that."""
        layers = {name: self._paths[name] for name in names}
        said = self._listener.draw(self._prompts[1], keep=layers).said
        return said, self._drawn_with(names, said)

    def _drawn_with(self, names: Sequence[str], said: Mapping[str, list[Any]]) -> Draw:
        layers = {name: self._paths[name] for name in names}
        return self._listener.draw(self._prompts[0], layers=layers, keep=layers, put=said)


def starred(names: Sequence[str]) -> str:
    """Names with their numbers as stars, each once."""
    patterns = (re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names)
    return ", ".join(dict.fromkeys(patterns)) or "nothing"
