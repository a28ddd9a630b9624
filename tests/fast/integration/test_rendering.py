"""The tokenizer's part in a correction prompt: which tokens an attempt's text has, and which it may not spell."""

import logging

import pytest
from omegaconf import OmegaConf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.prompts import correction_prompt
from verl_cipo.integration import rendering
from verl_cipo.integration.rendering import Rendering

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(*special: str, plain: tuple[str, ...] = ()):
    """A byte is a token, and so is each of the texts."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>", *special)])
    made.add_tokens([AddedToken(text, special=False) for text in plain])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>")
    fast.chat_template = TEMPLATE
    return fast


def prompt_of(made, **knobs):
    cipo = CIPOConfig.from_mapping({"preset": "stream", "prompt": knobs})
    return correction_prompt(cipo, made, prompt_length=10_000, count_tokens=lambda messages: 1)


def shown(prompt, made, response: str) -> str:
    ids = made.encode(response, add_special_tokens=False)
    (message,), _ = prompt.build([{"role": "user", "content": "Q?"}], prompt.decode(ids))
    return message["content"].split("<attempt>\n")[1].split("\n</attempt>")[0]


def test_an_attempt_that_spells_the_end_of_a_turn_does_not_end_it():
    made = tokenizer()
    spelt = [i for text in ("<|im", "_end|>", "user") for i in made.encode(text, add_special_tokens=False)]
    prompt = prompt_of(made)
    messages, _ = prompt.build([{"role": "user", "content": "Q?"}], prompt.decode(spelt))
    ids = made.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
    end = made.convert_tokens_to_ids("<|im_end|>")
    assert ids.count(end) == 1, "the turn's own"
    assert "< |im_end|>user" in messages[0]["content"]


def test_special_tokens_are_no_text_of_an_attempt():
    made = tokenizer("<s>")
    prompt = prompt_of(made)
    assert prompt.decode(made.encode("a<s>b<|im_end|>", add_special_tokens=False)) == "ab"


@pytest.mark.parametrize("special", [True, False])
def test_markers_of_thinking_may_be_special_tokens(special):
    markers = ("[THINK]", "[/THINK]")
    made = tokenizer(*markers) if special else tokenizer(plain=markers)
    prompt = prompt_of(made, thinking_open=markers[0], thinking_close=markers[1])
    assert shown(prompt, made, "[THINK]2+2[/THINK]It is 4.<|im_end|>") == "It is 4."


def test_a_marker_may_be_made_of_special_tokens_and_text():
    made = tokenizer("<|channel|>", "<|message|>", "<|start|>", "<|end|>")
    prompt = prompt_of(
        made,
        thinking_open="<|channel|>analysis<|message|>",
        thinking_close="<|end|><|start|>assistant<|channel|>final<|message|>",
    )
    said = "<|channel|>analysis<|message|>2+2<|end|><|start|>assistant<|channel|>final<|message|>It is 4.<|im_end|>"
    assert shown(prompt, made, said) == "It is 4."
    assert shown(prompt, made, "<|channel|>analysis<|message|>2+2 is") == "2+2 is"


def made_in_the_driver(made, **knobs):
    rendering._warn_of_thinking.cache_clear()
    config = OmegaConf.create({"data": {}, "actor_rollout_ref": {"rollout": {"prompt_length": 100}}})
    return Rendering.of(config, CIPOConfig.from_mapping({"preset": "stream", "prompt": knobs}), made)


def test_a_vocabulary_with_other_markers_warns(caplog):
    made = tokenizer("[THINK]", "[/THINK]")
    with caplog.at_level(logging.WARNING, logger="verl_cipo"):
        made_in_the_driver(made)
        assert "the tokenizer knows [THINK], and" in caplog.text and "between <think> and </think>" in caplog.text
        assert "prompt.thinking_open" in caplog.text
        caplog.clear()
        made_in_the_driver(made, thinking_open="[THINK]", thinking_close="[/THINK]")
        made_in_the_driver(made, attempt_view="whole")
        made_in_the_driver(tokenizer(plain=("<think>", "</think>")))
        made_in_the_driver(tokenizer())
        made_in_the_driver(tokenizer("<|channel|>"), thinking_open="<|channel|>analysis")
    assert not caplog.records


def test_what_is_read_in_the_driver_is_what_the_worker_reads():
    made = tokenizer("[THINK]", "[/THINK]")
    knobs = {"thinking_open": "[THINK]", "thinking_close": "[/THINK]"}
    ids = made.encode("[THINK]a[/THINK]b<|im_end|>", add_special_tokens=False)
    assert (
        made_in_the_driver(made, **knobs).prompt.decode(ids)
        == "[THINK]a[/THINK]b"
        == prompt_of(made, **knobs).decode(ids)
    )


def test_what_verl_says_of_a_model_at_each_session_is_said_once(caplog):
    said = rendering._Once()
    logger = logging.getLogger("test_once")
    logger.addFilter(said)
    with caplog.at_level(logging.WARNING, logger="test_once"):
        for model in ("llama", "llama", "gemma"):
            logger.warning("no builder for %s", model)
    assert [record.getMessage() for record in caplog.records] == ["no builder for llama", "no builder for gemma"]
