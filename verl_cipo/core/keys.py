"""The names of rows: whose group, which session, which output.

A key is `{group}_{session}_{output}`: verl's, with a group that may be more than a prompt's uid (`GroupName`). verl's
replay buffer takes what precedes a key's first "_" for the uid of the prompt, which has none.
"""

import re
from typing import NamedTuple

_END = re.compile(r"_([cnp])(\d+)([arq]?)\Z")


class GroupName(NamedTuple):
    """Whose rows are compared with one another.

    {prompt}            the attempts of a prompt
    {prompt}_c{n}       corrections of its anchor n: the attempt's session, with schedule=replay a place in a list
    {prompt}_c{n}{use}  rows made of these corrections: a, as they are, and r, the rejected attempt, for the auxiliary
                        loss; q, as answers to the plain question, for transfer
    {prompt}_p{n}       rows made of attempt n and a right rollout, its pair, for the auxiliary loss
    {prompt}_n{n}       the row made of attempt n, which had a context, as an answer to the plain question
    """

    prompt: str
    kind: str = ""
    number: int | None = None
    use: str = ""

    @classmethod
    def parse(cls, name: str) -> "GroupName":
        """The parts of a name."""
        prompt, end = name, _END.search(name)
        if end is None:
            return cls(prompt)
        kind, number, use = end.groups()
        return cls(prompt[: end.start()], kind, int(number), use)

    def __str__(self) -> str:
        return f"{self.prompt}_{self.kind}{self.number}{self.use}" if self.kind else self.prompt

    @property
    def anchor(self) -> int | None:
        """The number of the anchor that a correction corrects; None of any other row."""
        return self.number if self.kind == "c" and not self.use else None

    @property
    def attempt(self) -> "RowKey":
        """The first row of attempt n of the prompt, which {prompt}_c{n} corrects but with schedule=replay."""
        if self.number is None:
            raise ValueError(f"{self} is the group of a prompt's attempts: expected one of a single attempt")
        return RowKey(self.prompt, self.number)


def correction_group(prompt: str, anchor: int) -> str:
    """The name of the group of an anchor's corrections."""
    return str(GroupName(prompt, "c", anchor))


class RowKey(NamedTuple):
    """The name of a row: group, session of the group, output of the session (an agent loop may give several)."""

    group: str
    session: int
    output: int = 0

    @classmethod
    def parse(cls, key: str) -> "RowKey":
        """The parts of a key. Raises: ValueError when it is none."""
        group, session, output = key.rsplit("_", 2)
        return cls(group, int(session), int(output))

    def __str__(self) -> str:
        return f"{self.group}_{self.session}_{self.output}"

    @property
    def rollout(self) -> str:
        """The name that the outputs of a session have in common."""
        return f"{self.group}_{self.session}"


def follows_outputs(key: str) -> bool:
    """Whether a row's session gave outputs before it: what it answers has them in it, and is not the prompt alone."""
    return RowKey.parse(key).output > 0
