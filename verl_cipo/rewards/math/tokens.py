r"""A normalized answer as tokens: plain words that stand for commands (`pi`, `np.arcsin`), what the commands do, and a
place among the tokens."""

import re

BINARY = {r"\cdot": "mul", r"\times": "mul", "*": "mul", "/": "div", r"\div": "div"}


def _commands(names: str) -> frozenset[str]:
    return frozenset("\\" + name for name in names.split())


ACCENTS = _commands(
    "hat vec bar tilde dot ddot overline widehat widetilde overrightarrow mathcal mathbb mathscr mathfrak check "
    "breve acute"
)
FIGURES = _commands("angle triangle measuredangle odot square parallelogram")
OPAQUE = _commands("sum prod int iint iiint oint lim min max gcd lcm inf sup det arg Re Im bigcap partial nabla")
NOT_NAMES = _commands(
    "to rightarrow Rightarrow implies iff equiv pmod bmod mod vee wedge neg lnot forall exists subset subseteq perp "
    "parallel cong sim approx propto mapsto pm mp cup cap in notin setminus or and ldots cdots dots vdots over end "
    "le ge ne emptyset langle rangle { } \\ % $ _ # & choose"
)
CALLED = frozenset("fghFGHP")
CLOSING = {"(": ")", "[": "]", "{": "}", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil", "|": "|", r"\Vert": r"\Vert"}
MATRICES = frozenset("pmatrix bmatrix Bmatrix matrix smallmatrix array".split())
DIFFERENTIAL = re.compile(r"(?:d|\\partial)(?:\^\w)?(?:\\?[A-Za-z]+)?(?:\(\w\))?")
# With blanks between the tokens.
BY_DIFFERENTIAL = re.compile(r"(?:(?:d|\\partial) \\?[A-Za-z]+(?: \^ \w)?(?: |$))+")
OPERATOR = re.compile(r"(?:d|\\partial)(?:\^\w)?")

FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth sech csch arcsinh arccosh "
    "arctanh ln log lg exp".split()
)
_OTHER_NAMES = {
    "asin": "arcsin", "acos": "arccos", "atan": "arctan", "arcsinh": "arcsinh", "asinh": "arcsinh",
    "acosh": "arccosh", "atanh": "arctanh", "arsinh": "arcsinh", "arcosh": "arccosh", "artanh": "arctanh",
    "tg": "tan", "ctg": "cot", "cotan": "cot", "cosec": "csc", "arctg": "arctan",
}  # fmt: skip
_PLAIN = frozenset(
    "pi sqrt alpha beta gamma delta epsilon theta lambda mu sigma rho tau phi psi omega infty binom".split()
)
_SYNONYMS = {
    "leq": "le", "leqslant": "le", "geq": "ge", "geqslant": "ge", "neq": "ne", "infin": "infty", "infinity": "infty",
    "lbrace": "{", "rbrace": "}", "lbrack": "[", "rbrack": "]", "vert": "|", "lvert": "|", "rvert": "|", "mid": "|",
    "dbinom": "binom", "tbinom": "binom", "choose": "choose", "ast": "*", "cdotp": "cdot", "varepsilon": "epsilon",
    "varphi": "phi", "vartheta": "theta", "lt": "<", "gt": ">", "backslash": "setminus", "colon": ":", "oo": "infty",
    "bigcup": "cup", "or": "or", "lor": "or", "vee": "vee", "land": "land", "degree": "degree", "prime": "'",
}  # fmt: skip
_RELATIONS = {"<=": "le", ">=": "ge", "!=": "ne"}
NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?!,?\d)(?:\.\d+)?|\d{1,3}(?: \d{3})+(?!\d)|\d+\.?\d*|\.\d+")
_LONG_WORD = re.compile(r"(?<![A-Za-z\\{])[A-Za-z]{3,}(?![A-Za-z}])")
_TOKEN = re.compile(
    r"(?P<text>\\(?:text|textbf|textit|textrm|texttt|textsf|textnormal|textup|mathrm|mbox|hbox|operatorname\*?)\s*\{(?P<inside>[^{}]*)\})"
    r"|(?P<begin>\\begin\s*\{(?P<opened>\w+\*?)\}(?:\s*\{[lcr|]*\})?)|(?P<end>\\end\s*\{\w+\*?\})"
    r"|(?P<command>\\[A-Za-z]+)|(?P<escape>\\.)"
    rf"|(?P<number>{NUMBER.pattern})"
    r"|(?P<word>(?:(?:np|numpy|math|sp|sympy)\.)?[A-Za-z]+)|(?P<relation><=|>=|!=)|(?P<sign>\*\*|\S)"
)


class Unreadable(Exception):
    """The text is no mathematics that this reader knows."""


def tokens(text: str, *, separators: bool = True) -> list[str]:
    r"""The tokens of a normalized answer.

    Commands begin with a backslash, texts with a double quote; numbers have no separators; the rest are single
    characters.

    Args:
        text: the answer.
        separators: whether `1,234` is a number; else it is a list of two.

    Raises:
        Unreadable: the text is prose, or a list of two would have a part such as 000.
    """
    if len([word for word in _LONG_WORD.findall(text) if word not in FUNCTIONS | _PLAIN | _OTHER_NAMES.keys()]) > 2:
        raise Unreadable
    found: list[str] = []
    for match in _TOKEN.finditer(text):
        kind, written = match.lastgroup, match[0]
        if kind in ("text", "inside"):
            found.extend(_text(match["inside"].strip()))
        elif kind in ("begin", "opened"):
            found.append(rf"\begin {match['opened']}")
        elif kind == "end":
            found.append(r"\end")
        elif kind == "command":
            found.append(_command(written[1:]))
        elif kind == "escape":
            found.append({r"\|": r"\Vert", r"\%": "%", r"\&": r"\and"}.get(written, written))
        elif kind == "number":
            plain = written.replace(" ", "")
            if "," in plain and (not separators or plain.startswith("0")):
                groups = plain.split(",")
                if any(group[0] == "0" and len(group) > 1 for group in groups):
                    raise Unreadable
                found.extend(token for group in groups for token in (",", group))
                del found[-2 * len(groups)]
            else:
                found.append(plain.replace(",", ""))
        elif kind == "word":
            found.extend(_word(written.rpartition(".")[2]))
        elif kind == "relation":
            found.append("\\" + _RELATIONS[written])
        else:
            found.append("^" if written == "**" else written)
    return found


def _command(name: str) -> str:
    name = _SYNONYMS.get(name, name)
    name = _OTHER_NAMES.get(name, name)
    return name if not name[0].isalpha() and name not in "{}" else "\\" + name


def _text(inside: str) -> list[str]:
    """A text command: a letter or function set upright, a connective, or a name of its own."""
    if len(inside) == 1 and inside.isalpha():
        return [inside]
    if inside.lower().strip(" ,.;") in ("or", "and"):
        return ["\\" + inside.lower().strip(" ,.;")]
    if inside in FUNCTIONS or inside in _OTHER_NAMES:
        return _word(inside)
    return ['"' + " ".join(inside.casefold().split())] if inside else []


def _word(word: str) -> list[str]:
    """A run of letters: a function, a Greek letter, a connective, or the product of its letters."""
    word = _OTHER_NAMES.get(word, word)
    if word in FUNCTIONS or word in _PLAIN:
        return ["\\" + word]
    if word in ("or", "and"):
        return ["\\" + word]
    if word in ("infinity", "oo", "inf"):
        return [r"\infty"]
    if word[:-1] in FUNCTIONS:
        return ["\\" + word[:-1], word[-1]]
    return list(word)


class Cursor:
    """A place in a list of tokens."""

    def __init__(self, found: list[str]) -> None:
        self._tokens, self._at = found, 0

    def done(self) -> bool:
        return self._at >= len(self._tokens)

    def _peek(self, ahead: int = 0) -> str:
        at = self._at + ahead
        return self._tokens[at] if at < len(self._tokens) else ""

    def _take(self, expected: str = "") -> str:
        token = self._peek()
        if not token or (expected and token != expected):
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


def unbraced(part: list[str], between: str = "") -> str:
    return between.join(token for token in part if token not in ("{", "}"))
