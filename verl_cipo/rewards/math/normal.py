r"""The normal form of an answer's text: one way to write what has many, without formatting.

Delimiters, spacing, sizes, colors and fonts are taken off; signs of Unicode become LaTeX; environments that only lay
out lines become lists. What the answer says is unchanged.
"""

import re
import unicodedata
from functools import lru_cache

_SIGNS = str.maketrans(
    {
        "\u2212": "-", "\u2013": "-", "\u2014": "-", "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u22c5": r"\cdot ",
        "\u00f7": "/", "\u2044": "/", "\u2215": "/", "\u00b0": r"^\circ ", "\u221e": r"\infty ",
        "\u2264": r"\le ", "\u2265": r"\ge ", "\u2260": r"\ne ", "\u222a": r"\cup ", "\u2229": r"\cap ",
        "\u2208": r"\in ", "\u2248": r"\approx ", "\u00b1": r"\pm ", "\u2213": r"\mp ", "\u2032": "'",
        "\u2205": r"\emptyset ", "\u211d": r"\mathbb{R}", "\u2124": r"\mathbb{Z}", "\u20ac": r"\$", "\u00a3": r"\$",
        "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u2220": r"\angle ", "\u2206": r"\Delta ", "\u2223": "|",
        "\u27e8": r"\langle ", "\u27e9": r"\rangle ", "\u2061": "", "\u200b": "", "\u2062": "", "\ufeff": "",
        "\u00b5": r"\mu ", "\u2026": r"\ldots ", "\u2216": r"\setminus ", "\u00c5": r"\AA ",
        "\u00a5": r"\$", "\u20b9": r"\$", "\u3002": ".", "\u3001": ", ",
    }
    # Marks of the direction of text.
    | dict.fromkeys(map(chr, [0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]), "")
)  # fmt: skip
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi chi "
    "psi omega"
).split()
_GREEK = {
    ord(unicodedata.lookup(f"GREEK {case} LETTER {'LAMDA' if name == 'lambda' else name.upper()}")): rf"\{written} "
    for name in _GREEK_NAMES
    for case, written in (("SMALL", name), ("CAPITAL", name.capitalize()))
}
_GREEK[ord("\u03d5")] = r"\phi "
# Small signs above and below the line, each with the one that it is a form of.
_SCRIPTS = {
    chr(code): (sign, chr(int(plain, 16)))
    for code in [*range(0xAA, 0xBF), *range(0x2B0, 0x2E5), *range(0x1D2C, 0x1D6B), *range(0x2070, 0x20A0)]
    if (found := unicodedata.decomposition(chr(code)).split())[:1] in (["<super>"], ["<sub>"]) and len(found) == 2
    for sign, plain in [("^" if found[0] == "<super>" else "_", found[1])]
}
_RAISED = "".join(small for small, (sign, _) in _SCRIPTS.items() if sign == "^")
_LOWERED = "".join(small for small, (sign, _) in _SCRIPTS.items() if sign == "_")
_SCRIPT_RUN = re.compile(f"[{_RAISED}]+|[{_LOWERED}]+")
# Full width, and letters of mathematical alphabets: each has one plain counterpart.
_COMPATIBLE = re.compile("[\uff01-\uff5e\U0001d400-\U0001d7ff]")
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")
_ROOT_SIGN = re.compile(
    "([\u221a\u221b\u221c])\\s?(?:\\(((?:[^()]|\\([^()]*\\))*)\\)|(\\d+|\\\\?[A-Za-z]+|\\{[^{}]*\\}))"
)
_ROOT_DEGREE = {"\u221a": "", "\u221b": "[3]", "\u221c": "[4]"}

# A backslash after a backslash begins no command: `\\ 3` is the next row of a matrix.
_DOLLAR = re.compile(r"(?<!\\)\$")
_DELIMITERS = re.compile(r"(?<!\\)\\[()\[\]]")
_NO_SPACE = re.compile(r"(?<!\\)\\!\s*|(?<=\d)\\,(?=\d{3}(?!\d))")
_SPACES = re.compile(
    r"(?<!\\)\\(?:[,;:> ]|q?quad(?![A-Za-z])|(?:display|text|script)style(?![A-Za-z])|hspace\*?\{[^{}]*\}"
    r"|(?:no)?limits(?![A-Za-z])|thinspace(?![A-Za-z])|mathstrut(?![A-Za-z])|checkmark(?![A-Za-z]))"
)
_SIZES = re.compile(r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\.?")
_FRACTIONS = re.compile(r"\\(?:[dtcsx]|nice)frac(?![A-Za-z])")
_TOP = re.compile(r"\\frac\s*(\d|(?:\\(?!frac|sqrt|text)[A-Za-z]+|(?<=\s)[A-Za-z]))\s*")
_BOTTOM = re.compile(r"(\\frac\s*\{[^{}]*\})\s*(\d|[A-Za-z]|\\(?!frac|sqrt|text)[A-Za-z]+)")
_DOUBLE_BRACES = re.compile(r"(?<!\\)\{(\{[^{}]*(?<!\\)\})\}")
_OVER = re.compile(r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}")
_LONE_OVER = re.compile(r"(?<![\^_}\]A-Za-z\\])" + _OVER.pattern)
_BARE_OVER = re.compile(r"([^{}]*)\\over(?![A-Za-z])([^{}]*)")
_FONTS = r"\\(?:mathbf|boldsymbol|bm|mathit|mathsf|mathtt|pmb|ensuremath|underline|emph|fbox|boxed|framebox)\s*"
_FONT = re.compile(_FONTS + r"\{([^{}]*)\}")
_FONT_OF_GROUPS = re.compile(_FONTS + r"(?=\{)")
_OLD_FONT = re.compile(
    r"\\(?:bf|it|sf|tt|rm|bfseries|itshape|em|normalsize|large|Large|LARGE|huge|small)(?![A-Za-z])\s*"
)
_UNIT_VECTOR = re.compile(r"\\(?:hat|vec|overrightarrow)\s*(?:\{\s*\\?([ijk])(?:math)?\s*\}|\\([ij])math)")
_COLOUR = re.compile(r"\\(?:text)?colou?r(?:box)?\s*(?:\[[^\[\]]*\])?\s*\{[^{}]*\}\s*|\\(?:tag\*?|label)\s*\{[^{}]*\}")
_TEXT_COMMANDS = r"\\(?:text|textbf|textit|textrm|texttt|textsf|textnormal|textup|mathrm|mbox|hbox|rm)"
TEXT = re.compile(_TEXT_COMMANDS + r"\s*\{([^{}]*)\}")
_NUMBER_AS_TEXT = re.compile(_TEXT_COMMANDS + r"\s*\{(?=[^{}]*\d)((?:[\d\s.,()/-]|\b(?:and|or)\b)*)\}")
_MATH_IN_TEXT = re.compile(rf"({_TEXT_COMMANDS})\s*\{{([^{{}}$]*)(?<!\\)\$([^$]*)(?<!\\)\$([^{{}}$]*)\}}")
_POWER_IN_TEXT = re.compile(rf"({_TEXT_COMMANDS}\s*\{{[^{{}}]*\^)\{{\s*(-?\d+)\s*\}}")
_ANGSTROM = re.compile(r"\\AA(?![A-Za-z])|\\mathring\s*\{\s*A\s*\}")
_BARRED = re.compile(r"(?<=\.)(\d*)\\(?:bar|overline)\s*(?:\{\s*(\d+)\s*\}|(\d))")
_REPEATING = re.compile(r"(?<=\.)(\d*)\\dot\s*\{?\s*(\d)\s*\}?(?:(\d*)\\dot\s*\{?\s*(\d)\s*\}?)?")
_LINES = re.compile(
    r"\\begin\s*\{(aligned|align\*?|gathered|gather\*?|split|equation\*?|cases)\}(?:\s*\[\w\])?(.*?)\\end\s*\{\1\}",
    re.DOTALL,
)
_ROW_END = re.compile(r"\\\\(?:\s*\[[^\[\]]*\])?")
_ROW_SPACE = re.compile(r"(?<=\\\\)\s*\[\s*-?[\d.]+\s*(?:pt|em|ex|mm|cm|in|mu)\s*\]")
_DOUBLED = re.compile(
    r"\\\\(?=(?:frac|dfrac|tfrac|sqrt|text|textbf|mathrm|mathbf|mathbb|cdot|times|pi|theta|alpha|beta|gamma|lambda|left|right"
    r"|sin|cos|tan|log|ln|infty|circ|pm|le|ge|leq|geq|ne|neq|in|cup|cap|boxed|overline|angle|begin|end|binom)(?![A-Za-z]))"
)  # fmt: skip
# Dots that stand for something, not those behind a sentence.
_DOTS = re.compile(r"\.\.\.(?=\s*[^\s.])|(?<=,)\s*\.\.\.")
# `1, 000` is no list: nobody writes 000 for 0.
_ZEROS = re.compile(r"(?<=\d,)\s+(?=000(?!\d))")
_BACKSLASHES = re.compile(r"\\+")
# What is said in words and has a sign.
_MAY_BE_PHRASE = re.compile(r"\b(?:solutions?|roots?|real|reals|empty|DNE|exist)\b", re.IGNORECASE)
_PHRASES = (
    (re.compile(r"(?:there (?:is|are|exists?) )?no (?:real )?(?:solutions?|roots?)|(?:the )?empty set"), r"\emptyset"),
    (re.compile(r"(?:the set of )?all (?:the )?(?:real numbers?|reals)"), r"\mathbb{R}"),
    (re.compile(r"dne|(?:the )?(?:limit )?does(?: not|n't) exist"), r"\text{does not exist}"),
)


@lru_cache(maxsize=4096)
def normalize(answer: str) -> str:
    """The answer without delimiters, formatting, spacing commands, thin spaces and the sentence's punctuation.

    Fractions are written as `\\frac{a}{b}`, signs of Unicode as LaTeX. What the answer says is unchanged.
    """
    text = _single_backslashes(_plain_signs(unicodedata.normalize("NFC", answer)))
    text = _DOLLAR.sub(" ", _MATH_IN_TEXT.sub(_math_out_of_text, text))
    text = text.replace("{,}", ",").replace("~", " ")
    text = _DOTS.sub(r"\\ldots ", text)
    if "\\" in text:
        text = _without_layout(text)
    text = _ZEROS.sub("", " ".join(text.split()))
    before = None
    while text != before:
        before = text
        text = text.strip().rstrip(".,;:").removeprefix("**").removesuffix("**").removesuffix(r"\\")
        text = text.removeprefix("=").strip()
        if text.startswith("{") and _closes_at_end(text):
            text = text[1:-1]
    return _sign_of_phrase(text) if _MAY_BE_PHRASE.search(text) else text


def _sign_of_phrase(text: str) -> str:
    r"""`\emptyset` for `\text{There are no real solutions}`; any other answer as it is."""
    words = " ".join(TEXT.sub(r" \1 ", text).casefold().split()).rstrip(".")
    return next((sign for phrase, sign in _PHRASES if phrase.fullmatch(words)), text)


def _without_layout(text: str) -> str:
    text = _NO_SPACE.sub("", _DELIMITERS.sub(" ", text))
    text = re.sub(r"\\varnothing(?![A-Za-z])", r"\\emptyset", text)
    if r"\begin" in text:
        text = _ROW_SPACE.sub("", text)
    text = _ANGSTROM.sub(r"\\text{angstrom}", text)
    text = _REPEATING.sub(_overlined, _BARRED.sub(r"\1\\overline{\2\3}", text))
    text = re.sub(r"\\[cl]?dots[bcimo]?(?![A-Za-z])", r"\\ldots", text)
    text = _SIZES.sub("", _SPACES.sub(" ", text))
    text = _LINES.sub(_as_list, _COLOUR.sub("", text))
    return _short_fractions(_without_fonts(text))


def _plain_signs(text: str) -> str:
    if text.isascii():
        return text
    text = _COMPATIBLE.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    text = _VULGAR.sub(_vulgar_fraction, text)
    text = _ROOT_SIGN.sub(
        lambda match: rf"\sqrt{_ROOT_DEGREE[match[1]]}{{{(match[2] or match[3] or '').strip('{}')}}}", text
    )
    text = _SCRIPT_RUN.sub(_script, text)
    return text.translate(_SIGNS).translate(_GREEK)


def _math_out_of_text(match: re.Match) -> str:
    r"""`\text{Area: $5\pi$ cm}` as `\text{Area: }5\pi\text{ cm}`."""
    before, after = (f"{match[1]}{{{words}}}" if words.strip() else " " for words in (match[2], match[4]))
    return f"{before} {match[3]} {after}"


def _overlined(match: re.Match) -> str:
    r"""The decimal `0.1\dot{2}3\dot{4}` as `0.1\overline{234}`."""
    again = match[2] + (match[3] + match[4] if match[4] else "")
    return rf"{match[1]}\overline{{{again}}}"


def _script(match: re.Match) -> str:
    inside = "".join(_SCRIPTS[small][1] for small in match[0]).replace("\u2212", "-")
    return _SCRIPTS[match[0][0]][0] + (inside if len(inside) == 1 else f"{{{inside}}}")


def _vulgar_fraction(match: re.Match) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", match[0]).partition("\u2044")
    return rf"\frac{{{top}}}{{{bottom}}}"


def _single_backslashes(text: str) -> str:
    r"""The text with `\\frac` read as `\frac`, as texts are that were escaped once too often.

    Where every backslash is doubled, all are halved. Else only those in front of common commands, and not inside an
    environment, where two begin a new row.
    """
    while (runs := _BACKSLASHES.findall(text)) and all(len(run) % 2 == 0 for run in runs):
        if not re.search(r"\\\\[A-Za-z%${}()]", text):
            break
        text = _BACKSLASHES.sub(lambda match: match[0][: len(match[0]) // 2], text)
    return text if r"\begin" in text else _DOUBLED.sub(r"\\", text)


def _as_list(match: re.Match) -> str:
    """The rows of an environment of lines, as a list; a row of `cases` with a condition as a pair."""
    rows = [row.strip().rstrip(",;.") for row in _ROW_END.split(match[2])]
    rows = [row for row in rows if row]
    if match[1] != "cases":
        rows = [row.replace("&", "") for row in rows]
        # A line that begins with a sign goes on with the line before.
        return " ".join(
            ", " + row if at and not re.match(r"\s*[=+<>-]|\s*\\[lg]e", row) else row for at, row in enumerate(rows)
        )
    return ", ".join(f"({row.replace('&', ',')})" if "&" in row else row for row in rows)


def _without_fonts(text: str) -> str:
    text = _OLD_FONT.sub("", re.sub(r"\\(?:rm|bf|it|sf|tt)\s*\{([^{}]*)\}", r"\\text{\1}", text))
    before = None
    while text != before:
        before = text
        text = _FONT.sub(r"\1", _NUMBER_AS_TEXT.sub(r"\1", _POWER_IN_TEXT.sub(r"\1\2", text)))
    text = _FONT_OF_GROUPS.sub("", text)
    text = _UNIT_VECTOR.sub(r"\1\2", text)
    # Text in text: \textbf{\text{A}}.
    return re.sub(_TEXT_COMMANDS + r"\s*\{\s*(" + TEXT.pattern + r")\s*\}", r"\1", text)


def _short_fractions(text: str) -> str:
    before = None
    while text != before:
        before, text = text, _DOUBLE_BRACES.sub(r"\1", text)
    if bare := _BARE_OVER.fullmatch(text):
        text = rf"\frac{{{bare[1]}}}{{{bare[2]}}}"
    text = _LONE_OVER.sub(r"\\frac{\1}{\2}", text)
    text = _TOP.sub(r"\\frac{\1}", _FRACTIONS.sub(r"\\frac", _OVER.sub(r"{\\frac{\1}{\2}}", text)))
    return _BOTTOM.sub(r"\1{\2}", text)


def _closes_at_end(text: str) -> bool:
    """Whether the brace that opens the text is closed by its last character."""
    depth = 0
    for position, character in enumerate(text):
        if character in "{}" and text[position - 1 : position] != "\\":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return position == len(text) - 1
    return False
