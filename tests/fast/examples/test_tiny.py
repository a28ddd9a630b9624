"""The demo's problems, tokenizer and data: solvable, split without overlap, lossless, and readable by verl."""

import ast
import json
import operator
import random
import re
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.tiny import prepare
from examples.tiny.evaluate import INSTRUCTION, correction_message, evaluate, is_right, prompt_ids, user_message
from examples.tiny.muon import Muon
from examples.tiny.problems import Level, corrupt, held_out, sample_problem
from verl_cipo.core.prompts import TEMPLATES

TEMPLATE = TEMPLATES["math"]
LEVELS = {"full": Level(), "quick": prepare.QUICK.level}
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


@pytest.fixture(scope="module")
def tokenizer():
    return prepare.make_tokenizer(TEMPLATE)


@pytest.fixture(scope="module", params=LEVELS)
def problems(request):
    rng = random.Random(7)
    return [sample_problem(rng, LEVELS[request.param]) for _ in range(500)]


def value(sum_: str) -> int:
    tree = ast.parse(sum_, mode="eval").body
    return OPERATORS[type(tree.op)](tree.left.value, tree.right.value)


def answer_from_words(question: str) -> int:
    """The answer as a reader of the question finds it, without the generator's events."""
    total = None
    for sentence in re.split(r"(?<=\.) ", question)[:-1]:
        numbers = [int(n) for n in re.findall(r"\d+", sentence)]
        amount = numbers[0] if len(numbers) == 1 else numbers[0] * numbers[1]
        if total is None:
            total = amount
        elif "times" in sentence:
            total *= amount
        elif "more" in sentence or "buys" in sentence:
            total += amount
        else:
            total -= amount
    return total


def test_solution_matches_the_words(problems):
    for problem in problems:
        assert answer_from_words(problem.question) == problem.answer
        assert is_right(problem.solution, problem.answer)


def test_every_line_of_a_solution_is_true_and_the_last_states_the_result(problems):
    for problem in problems:
        *lines, last = problem.solution.split("\n")
        for line in lines:
            left, right = line.rstrip(".").split(" = ")
            assert value(left) == int(right)
        assert last == f"#### {int(right)}"


def test_corruptions_are_wrong_and_keep_the_format(problems):
    rng = random.Random(3)
    for problem in problems:
        attempt = corrupt(rng, problem)
        assert not is_right(attempt, problem.answer)
        assert re.fullmatch(r"(\d+ [-+*] \d+ = \d+\.\n)+#### \d+", attempt)


def test_scorer_is_verls():
    from verl.utils.reward_score import default_compute_score

    texts = ["1 + 2 = 3.\n#### 3", "#### 4\n#### 3", "3", "####3", "#### 3.", "#### 1,003", "#### -3"]
    texts.append(texts[0] + " " * 300)
    for text in texts:
        for answer in (3, -3, 1003):
            assert is_right(text, answer) == bool(default_compute_score("openai/gsm8k", text, str(answer)))


def test_split_shares_no_skeleton():
    settings = replace(prepare.FULL, train=1500, val=128)
    train, val = prepare.draw_problems(settings)
    assert (len({p.skeleton for p in train}), len({p.skeleton for p in val})) == (1500, 128)
    assert all(held_out(p.skeleton) for p in val)
    assert not any(held_out(p.skeleton) for p in train)
    again = prepare.draw_problems(settings)
    assert [p.question for p in again[0]] == [p.question for p in train]
    other = prepare.draw_problems(replace(settings, seed=2))
    assert [p.question for p in other[1]] != [p.question for p in val]


def test_tokenizer_is_lossless(tokenizer, problems):
    rng = random.Random(5)
    for problem in problems[:200]:
        attempt = corrupt(rng, problem)
        for text in (problem.solution, attempt, user_message(problem), correction_message(TEMPLATE, problem, attempt)):
            assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    for text in ("a  7 b7\t77 + 7\n\n#### 12,000.5", "caf\u00e9 \u6f22\u5b57", "<attempt>\n1", " ,.  buys", TEMPLATE):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_digits_are_single_tokens_and_prompts_are_short(tokenizer, problems):
    rng = random.Random(5)
    assert len(tokenizer.encode("#### 1234", add_special_tokens=False)) == 5
    for problem in problems[:200]:
        turn = correction_message(TEMPLATE, problem, corrupt(rng, problem))
        assert INSTRUCTION in turn
        assert len(prompt_ids(tokenizer, user_message(problem))) <= 64
        assert len(prompt_ids(tokenizer, turn)) <= 120
        assert len(tokenizer.encode(problem.solution, add_special_tokens=False)) + 1 <= 56


def test_chat_template_is_qwens(tokenizer):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert ids.count(tokenizer.eos_token_id) == 2
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)


def test_muon_steps_as_torchs():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((8, 8), (8, 8), (16, 8), (8, 32))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    pair = Muon(ours, lr=0.01), torch.optim.Muon(theirs, lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimizer in pair:
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0)  # torch's works in bfloat16; five steps move about 0.01


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder as prepare.py makes it, after two steps of warm-up."""
    output = tmp_path_factory.mktemp("tiny")
    warmup = replace(prepare.QUICK.warmup, steps=4, look_from=4, look_every=4, own_from=2, own_every=2)
    settings = replace(prepare.QUICK, train=64, val=8, warmup=warmup)
    return output, settings, prepare.prepare(output, settings)


def test_prepare_writes_a_model_that_loads(prepared):
    output, settings, result = prepared
    model = AutoModelForCausalLM.from_pretrained(output / "model")
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    assert model.config.model_type == "qwen3"
    assert model.get_input_embeddings().num_embeddings == len(tokenizer) == result["vocabulary"]
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert result["steps"] == 4
    _, val = prepare.draw_problems(settings)
    assert set(evaluate(model, tokenizer, val, TEMPLATE)) == {"pass1", "w2c", "c2c", "corrected", "format"}


def test_prepare_reuses_only_what_has_the_same_settings(prepared, capsys):
    output, settings, result = prepared
    written = (output / "prepare.json").stat().st_mtime_ns
    assert prepare.prepare(output, settings) == result == json.loads((output / "prepare.json").read_text())
    assert "kept" in capsys.readouterr().out
    assert (output / "prepare.json").stat().st_mtime_ns == written
    assert prepare.prepare(output, replace(settings, seed=2))["seed"] == 2


def test_parquet_loads_in_verls_dataset(prepared, tokenizer):
    from omegaconf import OmegaConf
    from verl.utils.dataset.rl_dataset import RLHFDataset

    output, _, _ = prepared
    config = OmegaConf.create({"max_prompt_length": 64, "return_raw_chat": True, "cache_dir": str(output / "cache")})
    for split, n in (("train", 64), ("val", 8)):
        rows = RLHFDataset(str(output / "data" / f"{split}.parquet"), tokenizer, config)
        assert len(rows) == n
        row = rows[0]
        assert row["data_source"] == "openai/gsm8k"
        assert row["raw_prompt"][0]["content"].endswith(INSTRUCTION)
        assert int(row["reward_model"]["ground_truth"]) == answer_from_words(row["extra_info"]["question"])
        assert (row["extra_info"]["split"], row["extra_info"]["index"]) == (split, 0)
        assert is_right(row["extra_info"]["answer"], int(row["reward_model"]["ground_truth"]))
