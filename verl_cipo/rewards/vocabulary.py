r"""The commands that the parser of expressions knows, by what they do."""

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
BY_DIFFERENTIAL = re.compile(r"(?:(?:d|\\partial)\\?[A-Za-z]+(?:\^\w)?)+")
OPERATOR = re.compile(r"(?:d|\\partial)(?:\^\w)?")
