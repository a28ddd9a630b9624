"""What each row of a batch is: what its rollout worker noted on it, and tables of rows. Their names are in keys.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import chain
from typing import Any, cast

import numpy as np

from verl_cipo.core.anchors import Attempt, Group, Outcome
from verl_cipo.core.draws import lot
from verl_cipo.core.keys import GroupName, RowKey

BASE, CORRECTION, PADDING, APPENDED = 0, 1, 2, 3
"""Streams: attempts, corrections, rows that fill a batch up, rows that the policy loss does not train."""
CHOSEN, REJECTED, UNTRAINED = 1.0, -1.0, 0.0
"""What the auxiliary loss does to a row: make it likelier, less likely, nothing."""
PLAIN = -1
"""In place of the number of a context: the plain prompt."""
MARK = "cipo"
"""Where a row holds its `Mark`: in `extra_fields` of its agent loop's output, a column of V0's batch."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What a rollout worker notes on each row of a session.

    correct: the verdict; score: the verifier's; None where only the row's rewards tell it;
    origin: of its prompt, see `draws.origin`, empty for a correction;
    lost: whether the row stands in the place of an attempt that failed;
    refusal: why no correction prompt can be made of an attempt, where that was asked and none can;
    text: the response's, noted in a validation with a second turn;
    anchor: a correction's, by number; anchor_correct: the verdict on it, None for an attempt;
    copied: whether a correction repeats what was shown of its anchor;
    further: whether an attempt is one that the budget made in place of corrections;
    prompt_right, prompt_attempts, prompt_score, prompt_spread: of a correction, `anchors.Outcome` of its anchor's
    prompt, None where it is not known;
    question: of a correction whose anchor's prompt is not in its batch, the chat of that prompt; of an attempt under a
    context, the chat of its prompt without it;
    context: the number of a rollout's context in its prompt's list, None at the plain prompt;
    second: the second verifier's verdict, None where it was not asked or gave none.
    """

    correct: bool
    score: float | None = None
    origin: str = ""
    lost: bool = False
    refusal: str | None = None
    text: str | None = None
    anchor: int | None = None
    anchor_correct: bool | None = None
    copied: bool = False
    further: bool = False
    prompt_right: int | None = None
    prompt_attempts: int | None = None
    prompt_score: float | None = None
    prompt_spread: float | None = None
    question: list[dict] | None = None
    context: int | None = None
    second: bool | None = None

    @property
    def outcome(self) -> Outcome | None:
        """Of the prompt of a correction's anchor, where it is known."""
        known = (self.prompt_right, self.prompt_attempts, self.prompt_score, self.prompt_spread)
        return None if None in known else Outcome(*cast(tuple[int, int, float, float], known))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "Mark":
        """What `to_mapping` gave."""
        return cls(**values)

    def to_mapping(self) -> dict[str, Any]:
        """The plain dict that travels with the row, without what is as by default."""
        return {item.name: value for item in fields(self) if (value := getattr(self, item.name)) != item.default}


@dataclass(frozen=True)
class Rows:
    """What the advantage needs to know of each row of a batch; numpy arrays of shape (N,), in batch order.

    stream: int8, BASE, CORRECTION or PADDING; group: str, equal within a prompt's attempts, or an anchor's corrections;
    session: str, equal for the outputs of one agent-loop session; final: bool, the last output of its session;
    correct: bool, the verdict on the row; anchor_correct: bool, that on the anchor (False for a base row);
    further: bool, an attempt that the budget made in place of corrections; None in the constructor: no row is one;
    context: int64, the number of a rollout's context, PLAIN of other rows; None in the constructor: no row has one.
    """

    stream: np.ndarray
    group: np.ndarray
    session: np.ndarray
    final: np.ndarray
    correct: np.ndarray
    anchor_correct: np.ndarray
    further: np.ndarray = None  # type: ignore[assignment]
    context: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.further is None:
            object.__setattr__(self, "further", np.zeros(np.shape(self.stream), dtype=bool))
        if self.context is None:
            object.__setattr__(self, "context", np.full(np.shape(self.stream), PLAIN, dtype=np.int64))
        shapes = {item.name: np.shape(getattr(self, item.name)) for item in fields(self)}
        if len(set(shapes.values())) != 1 or len(shapes["stream"]) != 1:
            raise ValueError(f"shapes {shapes}: expected one shape (N,)")
        if not np.isin(self.stream, (BASE, CORRECTION, PADDING)).all():
            raise ValueError(f"stream holds {np.unique(self.stream)}: expected {BASE}, {CORRECTION}, {PADDING}")
        for name in ("final", "correct", "anchor_correct", "further"):
            if (dtype := getattr(self, name).dtype).kind != "b":
                raise TypeError(f"{name} is {dtype}: expected bool")

    def __len__(self) -> int:
        return len(self.stream)

    @classmethod
    def joined(cls, parts: Sequence["Rows"]) -> "Rows":
        """The rows of all `parts` after one another."""
        return cls(**{item.name: np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(cls)})

    def take(self, idx: np.ndarray | Sequence[int]) -> "Rows":
        """The rows at `idx` (positions or a bool mask), in that order."""
        idx = np.asarray(idx) if len(idx) else np.empty(0, dtype=np.int64)
        return Rows(**{item.name: getattr(self, item.name)[idx] for item in fields(self)})


@dataclass(frozen=True, kw_only=True)
class RowTable:
    """All rows that were rolled out, before padding and reordering.

    index: the id in the data set of each row's prompt, a correction has that of its anchor; scores: (N,) raw verifier
    scores; tokens: (N,) response tokens; copied: (N,) bool, a correction that repeats its attempt; origin: that of each
    row's prompt, empty for a correction and where it is not known; outcome: of the prompt of a correction's anchor;
    question: the chat of that prompt where it is not in the batch, and that of the plain prompt of an attempt under a
    context; second: (N,) float, the second verifier's verdict,
    1 right, 0 wrong, NaN where there is none.
    """

    keys: list[str]
    rows: Rows
    index: list[Any]
    scores: np.ndarray
    tokens: np.ndarray
    copied: np.ndarray
    origin: list[str]
    outcome: list[Outcome | None]
    question: list[list[dict] | None]
    second: np.ndarray

    def __post_init__(self) -> None:
        lengths = {item.name: len(getattr(self, item.name)) for item in fields(self)}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"lengths {lengths}: expected one")

    @classmethod
    def of_marks(
        cls, keys: list[str], marks: Sequence[Mark], *, index: Sequence[Any], scores: np.ndarray, tokens: np.ndarray
    ) -> "RowTable":
        """From the keys of the rows and what the workers noted on each."""
        parsed = [RowKey.parse(key) for key in keys]
        session = [key.rollout for key in parsed]
        last: dict[str, int] = {}
        for name, key in zip(session, parsed, strict=True):
            last[name] = max(key.output, last.get(name, -1))
        rows = Rows(
            stream=np.array([BASE if mark.anchor_correct is None else CORRECTION for mark in marks], dtype=np.int8),
            group=np.array([key.group for key in parsed], dtype=object),
            session=np.array(session, dtype=object),
            final=np.array([key.output == last[name] for name, key in zip(session, parsed, strict=True)], dtype=bool),
            correct=np.array([mark.correct for mark in marks], dtype=bool),
            anchor_correct=np.array([bool(mark.anchor_correct) for mark in marks], dtype=bool),
            further=np.array([mark.further for mark in marks], dtype=bool),
            context=np.array([PLAIN if mark.context is None else mark.context for mark in marks], dtype=np.int64),
        )
        return cls(
            keys=keys,
            rows=rows,
            index=[value.item() if hasattr(value, "item") else value for value in index],
            scores=scores,
            tokens=tokens,
            copied=np.array([mark.copied for mark in marks], dtype=bool),
            origin=[mark.origin for mark in marks],
            outcome=[mark.outcome for mark in marks],
            question=[mark.question for mark in marks],
            second=np.array([np.nan if mark.second is None else mark.second for mark in marks], dtype=np.float64),
        )

    @classmethod
    def joined(cls, tables: Sequence["RowTable"]) -> "RowTable":
        """The rows of several batches after one another."""
        if len(tables) == 1:
            return tables[0]
        columns: dict[str, Any] = {"rows": Rows.joined([table.rows for table in tables])}
        for name in ("scores", "tokens", "copied", "second"):
            columns[name] = np.concatenate([getattr(table, name) for table in tables])
        for name in ("keys", "index", "origin", "outcome", "question"):
            columns[name] = list(chain.from_iterable(getattr(table, name) for table in tables))
        return cls(**columns)

    def attempts(self) -> tuple[list[Group], dict[Attempt, str]]:
        """The attempts by prompt, and the key of each one's final row."""
        rows = self.rows
        attempts: dict[str, list[Attempt]] = {}
        key_of = {}
        for i in np.flatnonzero((rows.stream == BASE) & rows.final):
            key = self.keys[i]
            attempt = Attempt(
                uid=str(rows.group[i]),
                index=self.index[i],
                session=RowKey.parse(key).session,
                correct=bool(rows.correct[i]),
                score=float(self.scores[i]),
                origin=self.origin[i],
            )
            attempts.setdefault(attempt.uid, []).append(attempt)
            key_of[attempt] = key
        return [Group(uid, tuple(own)) for uid, own in attempts.items()], key_of

    def right_corrections(self) -> list[str]:
        """Keys of right corrections of wrong attempts."""
        rows = self.rows
        right = (rows.stream == CORRECTION) & rows.final & rows.correct & ~rows.anchor_correct
        return [self.keys[i] for i in np.flatnonzero(right)]

    def preferences(self) -> dict[str, str]:
        """The first right correction of each wrong attempt -> the attempt, both as keys."""
        first: dict[str, str] = {}
        for key in sorted(map(RowKey.parse, self.right_corrections()), key=lambda key: key.session):
            first.setdefault(key.group, str(key))
        rows = self.rows
        of_session = {str(rows.session[i]): self.keys[i] for i in np.flatnonzero((rows.stream == BASE) & rows.final)}
        attempts = {}
        for group, key in first.items():
            attempt = GroupName.parse(group).attempt.rollout
            # An attempt whose row could not be stored still was corrected.
            if attempt in of_session:
                attempts[key] = of_session[attempt]
        return attempts

    def plain_prompt(self, i: int) -> tuple[str | None, list[dict]]:
        """Key of a row with the plain prompt that row `i` is of: the first output of a plain attempt at it.

        That of any attempt will do: the corrected one may be missing. Where all attempts have a context there is none,
        but their chat without it; None and an empty chat where the batch has neither.
        """
        prompt = GroupName.parse(str(self.rows.group[i])).prompt
        plain, under_context = (found.get(prompt) for found in self._asked)
        if plain is not None and self.index[plain] == self.index[i]:
            return self.keys[plain], []
        if under_context is not None and self.index[under_context] == self.index[i]:
            return None, self.question[under_context] or []
        return None, []

    @cached_property
    def _asked(self) -> tuple[dict[str, int], dict[str, int]]:
        """Prompt -> the first row that shows it as it was asked: outputs that follow show those before them, too.

        Of plain attempts, and of those under a context.
        """
        first: tuple[dict[str, int], dict[str, int]] = ({}, {})
        for i in np.flatnonzero(self.rows.stream == BASE).tolist():
            key = RowKey.parse(self.keys[i])
            if key.output == 0:
                first[int(self.rows.context[i] != PLAIN)].setdefault(key.group, i)
        return first

    def plain_questions(self) -> dict[str, list[dict]]:
        """Key -> the chat of the plain prompt, of attempts under a context: that in the batch has the context in it."""
        under_context = (self.rows.stream == BASE) & (self.rows.context != PLAIN)
        return {self.keys[i]: self.question[i] or [] for i in np.flatnonzero(under_context)}

    def correction_keys(self) -> list[str]:
        """Keys of the correction rows."""
        return [self.keys[i] for i in np.flatnonzero(self.rows.stream == CORRECTION)]

    def streams(self, keys: list[str]) -> np.ndarray:
        """(len(keys),) stream of each key, APPENDED for those that are not in the table."""
        stream = dict(zip(self.keys, self.rows.stream.tolist(), strict=True))
        return np.array([stream.get(key, APPENDED) for key in keys], dtype=np.int8)

    def stable_order(self, keys: list[str], *, seed: int, step: int) -> list[int]:
        """Positions of `keys` in an order that depends on neither random uids nor on which session ended first.

        The prompts are shuffled by (seed, step), the rows that belong to a prompt stay together. verl lists rows as
        they were stored, so that mini-batches would differ between a run and its repetition.
        """
        of_prompt: dict[str, tuple[bytes, str, str]] = {}
        # Attempts first: a correction may be one of another prompt.
        for i in np.argsort(self.rows.stream, kind="stable").tolist():
            uid = self.keys[i].partition("_")[0]
            if uid not in of_prompt:
                of_prompt[uid] = (lot(seed, step, self.index[i]), self.origin[i], uid)

        def place(key: str) -> tuple[tuple[bytes, str, str], str, int, int]:
            group, session, output = RowKey.parse(key)
            uid, _, inner = group.partition("_")
            return of_prompt[uid], inner, session, output

        return sorted(range(len(keys)), key=lambda i: place(keys[i]))

    def in_order(self, keys: Sequence[str], *, padding: np.ndarray) -> Rows:
        """The rows `keys`, which may have been added since where `padding`, (len(keys),) bool, says so.

        Raises: KeyError when a row is neither padding nor in the table.
        """
        position = {key: i for i, key in enumerate(self.keys)}
        index = [0 if pad else position[key] for key, pad in zip(keys, padding, strict=True)]
        rows = self.rows.take(np.array(index, dtype=np.int64))
        return Rows(
            stream=np.where(padding, PADDING, rows.stream).astype(np.int8),
            group=np.where(padding, "padding", rows.group),
            session=np.where(padding, np.array(keys, dtype=object), rows.session),
            final=rows.final | padding,
            correct=rows.correct & ~padding,
            anchor_correct=rows.anchor_correct & ~padding,
            further=rows.further & ~padding,
            context=np.where(padding, PLAIN, rows.context),
        )
