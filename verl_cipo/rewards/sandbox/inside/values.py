"""What a sandbox and the verifier send each other: values as JSON, in frames, and two words of the supervisor.

A frame is 4 bytes of length, little-endian, and that many bytes of JSON.
"""

import builtins
import collections
import decimal
import fractions
import json
import os
import struct

READY, IN_JAIL = 0x7EAD, 0x1A11
MAX_DEPTH = 100
# An iterator may have no end: more of it than this is cut off.
MAX_ITEMS = 10_000
MAX_ITERATOR_BYTES = 2**20
DICT_KEYS, DICT_VALUES, DICT_ITEMS = (type(view) for view in ({}.keys(), {}.values(), {}.items()))


class NotPlainError(TypeError):
    """A value of a type that `encode` does not know, so it cannot leave or enter the sandbox."""


class TooDeepError(NotPlainError):
    """A value that is nested too deep for that."""


class NoValueError(BaseException):
    """The solution gave test code nothing that it could go on with. No `except Exception` of the test may take it for
    an error that it asks for, and `raised` remembers it where even a bare `except` does."""

    raised = False

    def __init__(self, *args):
        super().__init__(*args)
        NoValueError.raised = True


def encode(value, depth=0):
    """`value` as JSON-able data from which `decode` makes an equal plain value.

    Plain are None, bool, int, float, complex, Fraction, Decimal, str, bytes, bytearray, range, the built-in types, and
    list, tuple, set, frozenset, deque, dict, the views of a dict and iterators of them. Instances of subclasses and
    numpy's scalars and arrays become the plain value that they hold. Raises: NotPlainError.
    """
    if depth > MAX_DEPTH:
        raise TooDeepError(f"a value nested deeper than {MAX_DEPTH}")
    kind = type(value)
    if value is None or kind is bool or kind is float:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        plain = int.__int__(value)
        # Above this size decimal text is slow to parse and refused by default.
        return plain if abs(plain) < 10**18 else {"int": hex(plain)}
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, dict):
        return {"dict": [[encode(key, depth + 1), encode(item, depth + 1)] for key, item in dict.items(value)]}
    if isinstance(value, list):
        return [encode(item, depth + 1) for item in value]
    for name, base in SEQUENCES.items():
        if isinstance(value, base):
            return {name: [encode(item, depth + 1) for item in value]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes" if isinstance(value, bytes) else "bytearray": bytes(value).hex()}
    if isinstance(value, range):
        return {"range": [encode(part) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, fractions.Fraction):
        return {"fraction": [encode(value.numerator), encode(value.denominator)]}
    if isinstance(value, decimal.Decimal):
        return {"decimal": str(value)}
    if getattr(builtins, getattr(value, "__name__", ""), None) is value and kind is type:
        return {"type": value.__name__}
    if kind.__module__ == "numpy":
        return encode(value.tolist(), depth + 1)
    if hasattr(kind, "__next__"):
        return _encode_iterator(value, depth)
    raise NotPlainError(f"a value of type {kind.__name__}")


SEQUENCES = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": collections.deque,
    "keys": DICT_KEYS,
    "values": DICT_VALUES,
    "items": DICT_ITEMS,
}


def _encode_iterator(value, depth):
    """What an iterator gives, up to a limit, behind which it is cut off."""
    items, left = [], MAX_ITERATOR_BYTES
    for item in value:
        items.append(encode(item, depth + 1))
        left -= len(json.dumps(items[-1]))
        if len(items) > MAX_ITEMS or left < 0:
            return {"cut": items}
    return {"iterator": items}


def _cut(items):
    yield from items
    raise NoValueError(f"an iterator gave more than {len(items)} elements")


MAKERS = {
    **SEQUENCES,
    "keys": lambda items: dict.fromkeys(items).keys(),
    "values": lambda items: dict(enumerate(items)).values(),
    "items": lambda items: dict(items).items(),
    "range": lambda items: range(*items),
    "fraction": lambda items: fractions.Fraction(*items),
    "iterator": iter,
    "cut": _cut,
}


def decode(data, depth=0):
    """The plain value that `data` stands for; of exact built-in types, so its methods are Python's own.

    In a sandbox only: what a program made can be slow to put into sets and dicts.
    Raises: NotPlainError when `data` is nothing that `encode` returns.
    """
    if depth > MAX_DEPTH:
        raise TooDeepError(f"data nested deeper than {MAX_DEPTH}")
    if isinstance(data, list):
        return [decode(item, depth + 1) for item in data]
    if not isinstance(data, dict):
        return data
    try:
        ((name, content),) = data.items()
        if name == "int":
            return int(content, 16)
        if name == "complex":
            return complex(*content)
        if name in ("bytes", "bytearray"):
            return getattr(builtins, name).fromhex(content)
        if name == "decimal":
            return decimal.Decimal(content)
        if name == "type" and isinstance(found := getattr(builtins, content), type):
            return found
        if name == "dict":
            return {decode(key, depth + 1): decode(item, depth + 1) for key, item in content}
        return MAKERS[name]([decode(item, depth + 1) for item in content])
    except NotPlainError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise NotPlainError(f"no encoded value: {error}") from error


def frame(data):
    """`data` as the bytes of one frame; bytes are a body as it is."""
    body = data if isinstance(data, bytes) else json.dumps(data).encode("ascii")
    return struct.pack("<I", len(body)) + body


def read_frame(fd):
    """The next frame of `fd`, or None at its end."""
    header = _read(fd, 4)
    return None if header is None else json.loads(_read(fd, *struct.unpack("<I", header)))


def write_frame(fd, data):
    """Writes `data` as one frame."""
    write_all(fd, frame(data))


def write_all(fd, data):
    """Writes all of `data`, in as many pieces as it takes."""
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def _read(fd, size):
    parts = []
    while size:
        part = os.read(fd, min(size, 2**20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
