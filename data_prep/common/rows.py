"""A raw row with checked access to its fields, and the errors that end a conversion."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What `fault` is told of a field without a value; where the row lacks it, the error says so.
NULL = "null"
_SHOWN_FIELDS = 12
# The reason to leave out a row whose tests hold a number that no JSON holds and that nothing equals.
NOT_FINITE = "a test with NaN or infinity"


class PrepError(Exception):
    """A conversion that cannot go on. The message is one line that says what is wrong and what is expected.

    reason: under which the row is counted where --skip_malformed goes on without it.
    """

    def __init__(self, message: str, reason: str = "malformed"):
        super().__init__(message)
        self.reason = reason


class Dropped(Exception):
    """Raised to leave a well-formed row out. The message is the reason under which it is counted.

    detail: what there is to say about this row alone; the row is then listed with it in the split's statistics.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.detail = detail


class Row:
    """One raw row; every accessor raises PrepError `file:row: field NAME: found; expected ...` on a wrong type.

    values: the row as JSON or Arrow gave it, nearly always a mapping; where: "file:row", the row counted from 1 (in
    JSON lines: the line). Accessors take several names where published layouts differ and use the first that is there.
    A NaN counts as null, which pandas writes for it.
    """

    def __init__(self, values: Any, where: str):
        self.values = values
        self.where = where

    @property
    def file(self) -> Path:
        """The file that the row is from."""
        return Path(self.where.rpartition(":")[0])

    def fault(self, field: str, found: str, expected: str) -> PrepError:
        """The error to raise about `field`, or about several, joined by "or"."""
        if found == NULL and not any(name in self.values for name in field.split(" or ")):
            has = list(self.values)
            more = f" and {len(has) - _SHOWN_FIELDS} more" if len(has) > _SHOWN_FIELDS else ""
            # Of parquet only the columns that are wanted are read.
            found = f"missing; fields read: {', '.join(map(str, has[:_SHOWN_FIELDS])) or 'none'}{more}"
        return PrepError(f"{self.where}: field {field}: {found}; expected {expected}", f"malformed field {field}")

    def get(self, *names: str) -> tuple[str, Any]:
        """(name, value) of the first field that is there and not null, else (all names, None)."""
        if not isinstance(self.values, Mapping):
            raise PrepError(
                f"{self.where}: {_kind(self.values)}; expected an object with the field {' or '.join(names)}"
            )
        for name in names:
            value = self.values.get(name)
            if value is not None and not (isinstance(value, float) and math.isnan(value)):
                return name, value
        return " or ".join(names), None

    def text(self, *names: str) -> str:
        """A string that is not blank, as it stands."""
        name, value = self.get(*names)
        if not isinstance(value, str) or not value.strip():
            raise self.fault(name, _kind(value), "text that is not blank")
        return self._utf8(name, value)

    def text_or_empty(self, *names: str) -> str:
        """A string; an absent or null field is the empty string."""
        name, value = self.get(*names)
        if value is not None and not isinstance(value, str):
            raise self.fault(name, _kind(value), "text or null")
        return self._utf8(name, value or "")

    def scalar(self, *names: str) -> str:
        """Text or a number, as text; 27.0 becomes 27."""
        name, value = self.get(*names)
        if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
            raise self.fault(name, _kind(value), "text or a number")
        if isinstance(value, float) and math.isinf(value):
            raise self.fault(name, "an infinite number", "text or a finite number")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return self._utf8(name, str(value).strip())

    def scalar_or_empty(self, *names: str) -> str:
        """As `scalar`; an absent, null or blank field is the empty string."""
        value = self.get(*names)[1]
        return "" if value is None or (isinstance(value, str) and not value.strip()) else self.scalar(*names)

    def flag(self, *names: str) -> bool:
        """True or false."""
        name, value = self.get(*names)
        if not isinstance(value, bool):
            raise self.fault(name, _kind(value), "true or false")
        return value

    def scalars(self, *names: str) -> list[str]:
        """A list of text and numbers, each as `scalar` gives it; may be empty."""
        name, value = self.get(*names)
        if not isinstance(value, list):
            raise self.fault(name, _kind(value), "a list of text or numbers")
        return [Row({name: item}, self.where).scalar(name) for item in value]

    def struct(self, *names: str) -> "Row":
        """A nested object, as a row of its own."""
        name, value = self.get(*names)
        if not isinstance(value, Mapping):
            raise self.fault(name, _kind(value), "an object")
        return Row({f"{name}.{key}": item for key, item in value.items()}, self.where)

    def parsed(self, *names: str) -> Any:
        """The value of a field that holds JSON as text.

        Raises: Dropped when it holds an integer of more digits than Python reads; PrepError when it is not JSON.
        """
        name, value = self.get(*names)
        if not isinstance(value, str):
            raise self.fault(name, _kind(value), "JSON as text")
        try:
            return json.loads(value)
        except (json.JSONDecodeError, RecursionError) as error:
            raise self.fault(name, f"not JSON ({error})", "JSON as text") from error
        except ValueError as error:
            raise Dropped("a test with an integer of thousands of digits") from error

    def _utf8(self, name: str, text: str) -> str:
        """JSON can hold halves of surrogate pairs, which no file can."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise self.fault(name, f"half a surrogate pair at {error.start}", "text that UTF-8 can hold") from error
        return text


def _kind(value: Any) -> str:
    """What an error says it found."""
    if value is None:
        return NULL
    if isinstance(value, str) and not value.strip():
        return "blank text"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
