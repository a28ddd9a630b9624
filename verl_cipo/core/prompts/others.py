"""Which other attempts a correction prompt shows beside the anchor, docs/method.md 19.

They are wrong ones whatever the anchor is, and the lots depend on sessions alone: neither the draw nor the order in
which all are shown sees the verdict on the anchor.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from verl_cipo.core.draws import lot


class Said(NamedTuple):
    """An attempt at a prompt: its session, its text, and what the verifier read off it, None where it does not tell."""

    session: int
    text: str
    pred: object = None


@dataclass(frozen=True)
class Others:
    """Attempts to show beside an anchor.

    texts: in the order of the draw, the last is the first to be left out where they do not all fit;
    order: in which all are shown, 0 is the anchor and i the i-th of `texts`.
    """

    texts: tuple[str, ...] = ()
    order: tuple[int, ...] = (0,)

    def first(self, count: int) -> "Others":
        """The first `count` of them."""
        return Others(self.texts[:count], tuple(place for place in self.order if place <= count))


ALONE = Others()
"""None."""


def draw_others(
    anchor: Said,
    wrong: Iterable[Said],
    *,
    answer: Callable[[Said], str],
    count: int,
    seed: int,
    step: int,
    index: int | str,
) -> Others:
    """Up to `count` attempts of `wrong` beside `anchor`, which may be one of them.

    Answers that no attempt shown has yet come first, then those that one has, and so on; among equals the lot of
    (seed, step, index, anchor, session) decides, and another one in which place each is shown. So the draw depends
    neither on the order of `wrong` nor on when it is made.
    """

    def lots(each: Said) -> tuple[bytes, bytes]:
        drawn = lot("others", seed, step, index, anchor.session, each.session, size=16)
        return drawn[:8], drawn[8:]

    seen = Counter([answer(anchor)])
    turns = []
    for each in sorted((each for each in wrong if each.session != anchor.session), key=lots):
        given = answer(each)
        turns.append((seen[given], len(turns), each))
        seen[given] += 1
    drawn = [each for *_, each in sorted(turns)[:count]]
    places = [lots(each)[1] for each in (anchor, *drawn)]
    return Others(tuple(each.text for each in drawn), tuple(sorted(range(len(places)), key=places.__getitem__)))
