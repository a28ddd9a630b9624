"""Which of an answer's fenced blocks is its program, and where it ends."""

import time

import pytest

from verl_cipo.rewards.code.fences import last_program

PROGRAM = "n = int(input())\nprint(n * n)"
INDENTED = "   n = int(input())\n   print(n * n)"
WITH_DOCSTRING = """def f(n):
    '''Square. It's easy:

    ```
    f(3)
    ```
    '''
    return n * n"""


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\na\n```", "a"),
        ("```\na\n```", "a"),
        ("```py\na\n```\nbetter:\n```python\nb\n```", "b"),
        ("```python\na\n```\nIt prints:\n```text\n3\n```", "a"),
        ("```cpp\na\n```", None),
        ("no code", None),
        ("", None),
        ("```python\na\n```\n```python\nb", "b"),
        ("```python\nprint('''\n```text\n''')\n```", "print('''\n```text\n''')"),
        ("````python\na\n```\nb\n````", "a\n```\nb"),
        ("~~~python\na\n~~~", "a"),
        ("  ```Python\n  a\n  ```", "a"),
        ("inline ```python is no fence\n```python\na\n```", "a"),
        ("```python\n```", ""),
        ("```python\r\na\r\n```\r\n", "a\r"),
        ("```python\nprint('a\x0cb\u2028c')\n```", "print('a\x0cb\u2028c')"),
        ("``\na\n``\n```\nb\n```", "b"),
        ("```python\na\n~~~\nb\n```", "a\n~~~\nb"),
        ("``` \tpython\na\n```", "a"),
        ("```python title=x\na\n```", "a"),
    ],
)
def test_last_program(text, code):
    assert last_program(text) == code


def takes_s(text: str) -> float:
    """Processor time, the best of two tries to leave other work out."""
    tries = []
    for _ in range(2):
        began = time.thread_time()
        last_program(text)
        tries.append(time.thread_time() - began)
    return min(tries)


@pytest.mark.parametrize("before", ["", "```\n", "```python\n"])
@pytest.mark.parametrize(
    "part",
    [
        *("```x\n", "- ", "'\"\\", "# ```\n", "</a>\n", "</think>\n", "x = ", "w,", "'''\n```\n", " ", "`"),
        *("> ```\n", "> ```\nx\n", "> > ```py\n> x\n", "x ```py\n", " " * 100 + "```x y\n"),
    ],
)
def test_an_answer_made_to_be_slow_to_read_is_not(part, before):
    """16 times the text takes hardly more than 16 times as long, where a rule of n ** 2 steps takes 256 times."""
    n = 20_000 // len(part)
    assert takes_s(f"{before}{part * 16 * n}`") < 60 * max(takes_s(f"{before}{part * n}`"), 0.001)


@pytest.mark.parametrize(
    "info",
    [
        *("python", "Python", "python3", "Python 3", "python3.11", "py", "py3", "pypy3", "ipython", "python-3"),
        *("python:solution.py", "python title=x", "python,linenos", "python{1,3}", "{.python}", "{.python .lines}"),
        *("solution.py", "src/main.py", "language-python", " python", "python # the program"),
    ],
)
def test_tags_of_python(info):
    assert last_program(f"```{info}\n{PROGRAM}\n```\n```text\n9\n```") == PROGRAM


@pytest.mark.parametrize(
    "info", ["pycon", "python-repl", "python console", "pytb", "python2to3", "cython", "output", "c++"]
)
def test_tags_of_something_else(info):
    assert last_program(f"```{info}\n{PROGRAM}\n```") is None


@pytest.mark.parametrize(
    "text",
    [
        f"```python\n{PROGRAM}\n```\nIt prints:\n```\n9\n```",
        f"```python\n{PROGRAM}\n```\n```\nTime: O(1)\n```\n",
        f"```python\n{PROGRAM}\n```\nInput:\n```\nn = 3\n```\nOutput:\n```\n9\n```",
        f"```\n{PROGRAM}\n```\nOutput:\n```\n9\n```",
        f"```python\n{PROGRAM}\n```\n```python\n>>> f(3)\n9\n```",
        f"```python\n{PROGRAM}\n```\n```\n",
        f"```\n```python\n{PROGRAM}\n```",
    ],
)
def test_what_is_behind_the_program_is_not_the_program(text):
    assert last_program(text) == PROGRAM


@pytest.mark.parametrize(
    "text",
    [
        f"1. So:\n   ```python\n{INDENTED}\n   ```\n",
        f"1. ```python\n{INDENTED}\n   ```\n",
        f"- ```python\n{INDENTED}\n  ```\n",
        "* So:\n\n\t```python\n\tn = int(input())\n\tprint(n * n)\n\t```\n",
        f"```python\n{INDENTED}\n```",
        f"   ```python\n{PROGRAM}\n   ```",
    ],
)
def test_indentation_is_that_of_the_fence(text):
    assert last_program(text) == PROGRAM


def test_a_docstring_keeps_its_indentation_beyond_that_of_the_fence():
    text = "\n".join("    " + line for line in ("```python", *WITH_DOCSTRING.split("\n"), "```"))
    assert last_program(f"- So:\n\n{text}\n") == WITH_DOCSTRING


@pytest.mark.parametrize("quotes", ["'''", '"""'])
@pytest.mark.parametrize("behind", ["", "\nIt gives:\n```\n9\n```", "\n```python\n>>> f(3)\n```"])
def test_a_fence_in_a_string_is_none(quotes, behind):
    program = WITH_DOCSTRING.replace("'''", quotes)
    assert last_program(f"```python\n{program}\n```{behind}") == program


def test_marks_in_strings_and_comments_do_not_end_the_code():
    program = "# ```json is cut off\nmark = '```'\nother = \"it's ```\"\nprint(mark)  # not `this`"
    assert last_program(f"```python\n{program}\n```\nText.") == program


@pytest.mark.parametrize(
    "end",
    ["```</answer>", "```<|im_end|>", "``` It prints 9.", "```.", "```**", "```\u200b", "````", "```  "],
)
def test_what_may_follow_a_closing_fence(end):
    assert last_program(f"<answer>\n```python\n{PROGRAM}\n{end}\nIt's done.") == PROGRAM


@pytest.mark.parametrize("end", ["```", "```</answer>", "``` "])
def test_a_closing_fence_on_the_last_line_of_the_code(end):
    assert last_program(f"```python\n{PROGRAM}{end}\nIt's done.").rstrip() == PROGRAM


def test_a_closing_fence_behind_a_comment_counts_where_there_is_no_other():
    assert last_program(f"```python\n{PROGRAM}  # 9```\nIt's done.").rstrip() == f"{PROGRAM}  # 9"


@pytest.mark.parametrize("end", ["\n</answer>", "\n<|im_end|>\n", "\n</code>\n</answer>\n", ""])
def test_tags_at_the_end_of_an_open_block_are_no_code(end):
    assert last_program(f"```python\n{PROGRAM}{end}") == PROGRAM


@pytest.mark.parametrize("draft", ["print(1)", "text = '''open", "it isn't\n```\nx", "# ```"])
@pytest.mark.parametrize("end", ["</think>", "</thinking>\n", " </THINK> ", "<|end_of_thought|>"])
@pytest.mark.parametrize("tag", ["python", ""])
def test_a_block_left_open_in_a_thought(draft, end, tag):
    assert last_program(f"<think>\n```python\n{draft}\nno.\n{end}\nSo:\n```{tag}\n{PROGRAM}\n```") == PROGRAM


@pytest.mark.parametrize("draft", ["print(1)", "text = '''open"])
def test_a_block_left_open_before_another(draft):
    assert last_program(f"```python\n{draft}\nno, it isn't.\n```python\n{PROGRAM}\n```") == PROGRAM


def test_a_program_in_the_thought_alone_is_taken():
    assert last_program(f"<think>\n```python\n{PROGRAM}\n```\n</think>\nAs above.") == PROGRAM


def test_the_end_of_a_thought_in_the_code_is_no_end():
    program = "print('</think>')\nprint(9)"
    assert last_program(f"```python\n{program}\n```\nIt prints a tag.") == program


@pytest.mark.parametrize(
    "text",
    [
        f"<answer>```python\n{PROGRAM}\n```</answer>",
        f"**Solution:** ```py\n{PROGRAM}\n```",
        "1. Code: ```python\n   n = int(input())\n   print(n * n)\n   ```",
        f"\u200b```python\n{PROGRAM}\n```",
        f"I put it into ```python\n```python\n{PROGRAM}\n```",
    ],
)
def test_a_fence_may_stand_behind_text(text):
    assert last_program(text) == PROGRAM


@pytest.mark.parametrize("mark", ["> ", ">", "  > "])
def test_a_quoted_block_loses_the_marks(mark):
    text = "\n".join(mark + line for line in ("```python", *PROGRAM.split("\n"), "```"))
    assert last_program(f"So:\n\n{text}\n\nDone.") == PROGRAM


def test_a_block_of_comments_is_no_program():
    assert last_program(f"```python\n{PROGRAM}\n```\nUsage:\n```python\n# 3 -> 9\n```") == PROGRAM


def test_a_byte_order_mark_is_no_code():
    assert last_program(f"```python\n\ufeff{PROGRAM}\n```") == PROGRAM
