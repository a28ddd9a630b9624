r"""Going through the tokens of an expression, and pieces of it that are kept as text."""

import re

from verl_cipo.rewards.tokens import Unreadable


class Cursor:
    """A place in a list of tokens."""

    def __init__(self, found: list[str]) -> None:
        self._tokens, self._at = found, 0

    def done(self) -> bool:
        return self._at >= len(self._tokens)

    def _peek(self, ahead: int = 0) -> str:
        at = self._at + ahead
        return self._tokens[at] if at < len(self._tokens) else ""

    def _take(self, wanted: str = "") -> str:
        token = self._peek()
        if not token or (wanted and token != wanted):
            raise Unreadable
        self._at += 1
        return token

    def _index(self) -> str:
        self._take("_")
        inside = self._braced() if self._peek() == "{" else self._take()
        if inside[0] in "^_)]}":
            raise Unreadable
        return "_" + inside.replace('"', "").replace("\\", "")

    def _braced(self) -> str:
        """The text of a group, as it is."""
        start, depth = self._at, 0
        while True:
            token = self._take()
            depth += (token == "{") - (token == "}")
            if not depth:
                inside = self._tokens[start + 1 : self._at - 1]
                if not inside:
                    raise Unreadable
                return joined(inside)


def joined(found: list[str]) -> str:
    """Tokens as a text that is the same however it was spaced and braced."""
    return re.sub(r"\{(.)\}", r"\1", "".join(token if len(token) == 1 else token + " " for token in found)).strip()


def unbraced(part: list[str]) -> str:
    return "".join(token for token in part if token not in ("{", "}"))
