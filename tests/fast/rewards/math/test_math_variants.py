"""Variants of what answers are misjudged for: one line a way of writing, right and wrong."""

import pytest

from verl_cipo.rewards.math import compute_score, workers


@pytest.fixture(scope="module", autouse=True)
def no_worker_is_left():
    yield
    workers.close_shared_pools()


def outcome(answer: str, reference: str) -> str:
    return str(compute_score("test", rf"\boxed{{{answer}}}", reference, workers=2)["outcome"])


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (r"\mathbf{\frac{1}{2}}", r"\frac12"),
        (r"\boldsymbol{\begin{pmatrix}1\\2\end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        (r"\text{$\frac{1}{2}$}", r"\frac12"),
        (r"\text{Area: $5\pi$ cm}", r"5\pi"),
        (r"\text{2, 3, and 5}", "2,3,5"),
        ("5\\\\", "5"),
        ("\u202a5\u202c", "5"),
        (r"\nicefrac{1}{2}", r"\frac12"),
        (r"\frac{1,000}{3}", r"\frac{1000}{3}"),
        ("1,000/3", r"\frac{1000}{3}"),
        ("20 000/3", r"\frac{20000}{3}"),
        (r"1,\ 000", "1000"),
        ("2./3", r"\frac{2}{3}"),
        (r"12\text{-th}", "12"),
        (r"3 x 10^8", r"3\times10^8"),
        (r"0.1\dot{6}", r"\frac16"),
        (r"0.\dot{1}4285\dot{7}", r"\frac17"),
        (r"\text{about } 5", "5"),
        (r"7.0 \text{ kg m}^2/\text{s}", "7"),
        (r"7 \text{ m} \cdot \text{s}^{-1}", "7"),
        (r"3~\mathrm{erg\,s^{-1}\,cm^{-2}}", "3"),
        (r"10\ \mu\text{m}", "10"),
        (r"5\,\text{k}\Omega", "5"),
        (r"7.3\,\text{\AA}", "7.3"),
        (r"\text{3:30 p.m.}", "3:30 p.m."),
        (r"\begin{pmatrix}1&2\\[2pt]3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
        (r"1,2,\dots,10", r"1,2,\ldots,10"),
        ("1,2,...,10", r"1,2,\cdots,10"),
        (r"1+2+\cdots+n", r"1+2+\dots+n"),
        (r"\{(1,2)\}", "(1,2)"),
        (r"1 \text{ or } 2", "1,2"),
        (r"\{1 \text{ or } 2\}", r"\{1,2\}"),
        (r"1 \text{ and } 2", "(1,2)"),
        ("2:6", "1:3"),
        ("3+2=5", "2+3=5"),
        ("=5", "5"),
        (r"0.\bar{3}", r"\frac13"),
        (r"0.1\bar 6", r"\frac16"),
        (r"0.\overline3", r"\frac13"),
        # Both signs among others.
        ("1,-1,2,-2", r"\pm 1, \pm 2"),
        (r"\{-3, 0, 3\}", r"\{0, \pm 3\}"),
        (r"x = 0 \text{ or } x = \pm 3", "-3,0,3"),
        # A vector as a column or a tuple.
        ("(1,2)", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        (r"\begin{pmatrix}1&2\end{pmatrix}", r"\langle 1,2 \rangle"),
        (r"3\hat{i}+4\hat{\mathbf{j}}", r"3\mathbf{i}+4\mathbf{j}"),
        (r"3\hat\imath+4\vec{\jmath}", r"3\mathbf{i}+4\mathbf{j}"),
        # For all values of a variable.
        (r"f(x) = 2x \text{ for all } x \in \mathbb{R}", "f(x) = 2x"),
        (r"f(x)=2x,\ \forall x\in\mathbb{R}", "f(x) = 2x"),
        ("f(x)=2x", r"f(x)=2x \text{ for all real numbers } x"),
        (r"x=3k\ (k\in\mathbb{Z})", r"x = 3k, k \in \mathbb{Z}"),
        # Words for a sign.
        (r"\text{There are no real solutions}", r"\text{No solution}"),
        (r"\text{no solution}", r"\emptyset"),
        ("all real numbers", r"(-\infty,\infty)"),
        (r"\mathbb{R}", r"\text{All real numbers}"),
        (r"\text{does not exist}", "DNE"),
        # Congruences and bases.
        (r"n \equiv 7 \pmod{10}", "7"),
        (r"7 \pmod{10}", "7"),
        ("(1011)_2", "1011_2"),
        (r"16\pi cm^2", r"16\pi"),
        (r"\binom{n+1}{2}", r"\frac{n(n+1)}{2}"),
    ],
)
def test_another_way_to_write_it_is_right(answer, reference):
    assert outcome(answer, reference) == "right"


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (r"\underline{\frac{1}{3}}", r"\frac12"),
        (r"\text{$5$ or $6$}", "5"),
        (r"\text{2 or 3}", "2"),
        (r"\frac{1,2}{3}", r"\frac{12}{3}"),
        (r"\frac{1,001}{3}", r"\frac{1000}{3}"),
        ("1./2", r"\frac13"),
        ("3 x 10^7", r"3\times10^8"),
        (r"0.\dot{4}", r"\frac13"),
        (r"\text{about }5\text{ or }6", "5"),
        (r"8 \text{ kg m}^2/\text{s}", "7"),
        (r"7\text{ or }\text{8}", "7"),
        (r"10\mu m g", "10"),
        (r"10\mu", "10"),
        (r"4 \text{ cm} \times 5 \text{ cm}", "4"),
        (r"3:30 \text{ a.m.}", "3:30 p.m."),
        (r"\begin{pmatrix}1\\[6pt]3\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        # Not all has been said, or more.
        (r"2,3,5,\ldots", "2,3,5"),
        ("2,3,5,...", "2,3,5"),
        ("2,3,5,\u2026", "2,3,5"),
        ("1,2,...,11", r"1,2,\ldots,10"),
        # A set of a set.
        (r"\{\emptyset\}", r"\emptyset"),
        (r"\{\{1,2\}\}", r"\{1,2\}"),
        # True, and not what is asked.
        ("1=1", r"\sin^2 x+\cos^2 x=1"),
        ("0=0", "x-x=0"),
        ("2+3", "2+3=5"),
        (r"9\times 9+8", r"9\times 9+8=89"),
        # What may be one or the other is no pair.
        (r"1 \text{ or } 2", "(1,2)"),
        (r"x=1 \text{ or } 2", "(1,2)"),
        (r"\pm 1", "(1,-1)"),
        # Of a time only the same one is equal.
        ("2:40", "1:20"),
        ("6:15", "12:30"),
        (r"0.\bar{4}", r"\frac13"),
        ("0,3", r"0, \pm 3"),
        (r"0, \pm 3", "0,3"),
        (r"\{0,3\}", r"\{0, \pm 3\}"),
        (r"(\pm 1, \mp 2)", "(1,2),(-1,2)"),
        ("(2,1)", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        ("(1,2,3,4)", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
        (r"\{1,2\}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        (r"3\hat{j}+4\hat{i}", r"3\mathbf{i}+4\mathbf{j}"),
        # Another domain, or one that changes an inequality.
        (r"x = 3k, k \in \mathbb{N}", r"x = 3k, k \in \mathbb{Z}"),
        (r"x > 0, x \in \mathbb{Z}", "x > 0"),
        (r"f(x) = 3x \text{ for all } x", "f(x) = 2x"),
        (r"f(x) = 2x \text{ for all } x > 0", "f(x) = 2x"),
        (r"\text{all real numbers except 1}", r"\mathbb{R}"),
        (r"\text{one solution}", r"\emptyset"),
        ("0", r"\text{no solution}"),
        (r"n \equiv 17 \pmod{10}", "17"),
        (r"n \equiv 7 \pmod{11}", r"n \equiv 7 \pmod{10}"),
        ("(1011)_3", "1011_2"),
        (r"16\pi m^2", r"16\pi\text{ cm}^2"),
        (r"\binom{10}{3}x", "120x"),
        (r"\binom{5+5}{3}x", "120x"),
    ],
)
def test_another_thing_is_not(answer, reference):
    assert outcome(answer, reference) != "right"


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("0.500000", r"\frac12+\frac{\sqrt3}{2}i"),
        ("1.23457", "1+i"),
        (
            r"\begin{pmatrix}1&2\\3&\begin{pmatrix}4\\5\end{pmatrix}\end{pmatrix}",
            r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        ),
    ],
)
def test_no_answer_is_an_error_of_the_verifier(answer, reference):
    assert outcome(answer, reference) != "right"
