"""What agent loops may be like: what a correction keeps of them, and what is refused beforehand.

tests/real/test_loops.py runs tools, several outputs a session and a loop for each row.
"""

import logging
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from verl.tools.schemas import OpenAIFunctionToolSchema
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from examples.tiny.tokenizer import build_tokenizer
from verl_cipo.core.config import CIPOConfig, CIPOConfigError
from verl_cipo.core.prompts import TAIL_MARK
from verl_cipo.integration import settings
from verl_cipo.integration.lengths import check_prompt_length
from verl_cipo.integration.rendering import Rendering
from verl_cipo.integration.rollout.worker import agent_loop_prompt
from verl_cipo.integration.tools import RunTools

# Ten tokens for each tool, and ten more where thinking is switched off.
TEMPLATE = (
    "{%- for tool in tools or [] %}{{- '#' * 10 }}{%- endfor %}"
    "{%- for message in messages %}{{- message.role + ':' + message.content + ';' }}{%- endfor %}"
    "{%- if enable_thinking is defined and not enable_thinking %}{{- '-' * 10 }}{%- endif %}"
)
QUESTION = [{"role": "user", "content": "1+1?"}]


@pytest.fixture(scope="module")
def tokenizer():
    made = build_tokenizer([], [])
    made.chat_template = TEMPLATE
    return made


def tool(name):
    function = {"name": name, "description": "", "parameters": {"type": "object", "properties": {}, "required": []}}
    return SimpleNamespace(
        tool_schema=OpenAIFunctionToolSchema.model_validate({"type": "function", "function": function})
    )


def worker(tokenizer, *, length, tools=(), **template_options):
    data = {"apply_chat_template_kwargs": template_options} if template_options else {}
    return SimpleNamespace(
        tokenizer=tokenizer,
        processor=None,
        dataset_cls=RLHFDataset,
        hf_model_type="qwen3",
        tools=[tool(name) for name in tools],
        config=OmegaConf.create({"data": data}),
        rollout_config=SimpleNamespace(prompt_length=length),
    )


def shown_tokens(worker) -> int:
    """Characters (a token each) of a long attempt that its correction prompt has room for."""
    messages, reason = agent_loop_prompt(worker, CIPOConfig(preset="stream")).build(QUESTION, "7" * 500)
    assert reason is None
    attempt = messages[-1]["content"].split("<attempt>\n")[1].split("\n</attempt>")[0]
    assert attempt.startswith(TAIL_MARK)
    return len(attempt) - len(TAIL_MARK)


def test_tools_and_template_options_take_their_room_in_the_prompt(tokenizer):
    plain = shown_tokens(worker(tokenizer, length=450))
    assert plain > 40
    assert shown_tokens(worker(tokenizer, length=450, tools=["lookup"])) == plain - 10
    assert shown_tokens(worker(tokenizer, length=450, tools=["lookup", "search"])) == plain - 20
    assert shown_tokens(worker(tokenizer, length=450, enable_thinking=False)) == plain - 10


def test_prompts_made_in_the_driver_are_rendered_with_the_template_options(tokenizer):
    config = OmegaConf.create(
        {
            "data": {"apply_chat_template_kwargs": {"enable_thinking": False}},
            "actor_rollout_ref": {"rollout": {"prompt_length": 450}},
        }
    )
    rendering = Rendering.of(config, CIPOConfig(preset="stream"), tokenizer)
    assert tokenizer.decode(rendering.encode(QUESTION)) == "user:1+1?;" + "-" * 10


def tools_of(folder, *names) -> str:
    """A file of tools as verl reads it."""
    listed = [
        {
            "class_name": "verl.tools.base_tool.BaseTool",
            "config": {"type": "native"},
            "tool_schema": tool(name).tool_schema.model_dump(exclude_unset=True, exclude_none=True),
        }
        for name in names
    ]
    file = folder / "tools.yaml"
    file.write_text(OmegaConf.to_yaml(OmegaConf.create({"tools": listed})))
    return str(file)


def rollout_with(file):
    return OmegaConf.create({"prompt_length": 450, "multi_turn": {"tool_config_path": file}})


def with_tools(tokenizer, file):
    config = OmegaConf.create({"data": {}, "actor_rollout_ref": {"rollout": rollout_with(file)}})
    return Rendering.of(config, CIPOConfig(), tokenizer, tools=RunTools.of(rollout_with(file), CIPOConfig()))


@pytest.fixture(scope="module")
def naming():
    """A tokenizer whose chat template names the tools."""
    made = build_tokenizer([], [])
    made.chat_template = TEMPLATE.replace("'#' * 10", "tool.function.name + ' '")
    return made


def test_the_driver_tells_which_tools_a_prompt_offers(naming, tmp_path):
    rendering = with_tools(naming, tools_of(tmp_path, "lookup", "search"))
    builder = create_continuous_token_builder(naming, hf_model_type="qwen3", chat_template_kwargs={})
    tools = rendering.tools
    lookup, search = tools.all
    for offered, info in (
        ([lookup, search], None),
        ([search], {"tool_selection": ["search", "gone"]}),
        # In the order of the row.
        ([search, lookup], {"tool_selection": ["search", "lookup"]}),
        ([], {"tool_selection": None}),
        ([], {}),
        ([], "no mapping"),
    ):
        asked = builder.build_initial_tokens(QUESTION, tools=offered or None)
        found = tools.offered(rendering.encode, QUESTION, asked, info)
        assert list(found) == offered and rendering.encode(QUESTION, found) == asked
    # A loop that renders as it likes, or that selects in a way of its own.
    for other in (asked[1:], builder.build_initial_tokens(QUESTION, tools=[search])):
        assert tools.offered(rendering.encode, QUESTION, other, None) is None
    # Room is counted with all of them.
    assert rendering.prompt.count_tokens(QUESTION) == len(rendering.encode(QUESTION, tools.all))
    assert tools.bind({"pixel_values": 1}) and not tools.bind({}), "a tool may have shown it"


def test_without_tools_nothing_is_rendered_to_tell(tokenizer):
    rendering = with_tools(tokenizer, None)
    assert list(rendering.tools.offered(lambda *_: pytest.fail("rendered"), QUESTION, [], None)) == []
    assert not rendering.tools.bind({"pixel_values": 1})


def test_tools_that_cannot_be_loaded_are_named_and_leave_out_what_needs_them(tokenizer, caplog):
    with caplog.at_level(logging.WARNING, logger="verl_cipo"):
        rendering = with_tools(tokenizer, "nowhere.yaml")
    assert "multi_turn.tool_config_path=nowhere.yaml cannot be loaded in the trainer's process" in caplog.text
    assert rendering.tools.offered(rendering.encode, QUESTION, [], None) is None
    assert rendering.tools.bind({"pixel_values": 1})


# What the templates of four families do beside the turns: an empty thought; a date, and what depends on tools; a system
# message of the model's own; a date, and channels in place of an answer.
FAMILIES = {
    "qwen3": "{% if messages[0].role == 'system' %}{{ '<|im_start|>system\n' + messages[0].content }}{% endif %}{TURNS}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and enable_thinking "
    "is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}",
    "llama": "{{ bos_token }}{% if not tools is defined %}{% set tools = none %}{% endif %}{% if tools is not none %}"
    "{{ 'Environment: ipython' }}{% endif %}{{ 'Today Date: ' + strftime_now('%d %b %Y') }}{TURNS}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "smollm2": "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are helpful<|im_end|>' }}"
    "{% endif %}{TURNS}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "gpt_oss": "{{ 'Current date: ' + strftime_now('%Y-%m-%d') + ' Reasoning: ' + (reasoning_effort or 'medium') }}"
    "{% if tools %}{{ 'functions' }}{% endif %}{TURNS}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}",
}
TURNS = "{% for message in messages %}{{ '<|' + message.role + '|>' + message.content | trim + '<|end|>' }}{% endfor %}"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"enable_thinking": False, "reasoning_effort": "high"}], ids=["", "options"])
def test_the_driver_renders_a_chat_as_the_agent_loops_do(family, options):
    """Prompts of pairs are rendered in the driver, and trained beside those of rollouts."""
    made = build_tokenizer([], [])
    made.chat_template = FAMILIES[family].replace("{TURNS}", TURNS)
    config = OmegaConf.create(
        {
            "data": {"apply_chat_template_kwargs": options},
            "actor_rollout_ref": {"rollout": {"prompt_length": 450}},
        }
    )
    builder = create_continuous_token_builder(made, hf_model_type=family, chat_template_kwargs=options)
    for chat in ([{"role": "system", "content": "Be brief."}, *QUESTION], QUESTION):
        assert Rendering.of(config, CIPOConfig(preset="stream"), made).encode(chat) == builder.build_initial_tokens(
            chat
        )


def test_a_chat_of_several_turns_keeps_what_precedes_the_last_question(tokenizer):
    """Examples and earlier turns."""
    history = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "0+1?"},
        {"role": "assistant", "content": "1"},
    ]
    messages, _ = agent_loop_prompt(worker(tokenizer, length=600), CIPOConfig(preset="stream")).build(
        [*history, *QUESTION], "3"
    )
    assert messages[:-1] == history
    assert messages[-1]["role"] == "user" and messages[-1]["content"].startswith("1+1?\n")


# As Qwen3's: of earlier answers what follows their thinking.
FORGETFUL = (
    "{%- for message in messages %}{{- message.role + ':' }}"
    "{%- if message.role == 'assistant' %}{{- message.content.split('</think>')[-1] | trim }}"
    "{%- else %}{{- message.content }}{%- endif %}{{- ';' }}{%- endfor %}"
)
OWN_TURN = {"form": "assistant_turn", "attempt_view": "whole"}


def turns(template, **knobs):
    """A prompt over a chat template with room for 60 tokens of an attempt, a character each."""
    made = build_tokenizer([], [])
    made.chat_template = template
    cipo = CIPOConfig.from_mapping({"preset": "stream", "prompt": OWN_TURN | knobs})
    least = agent_loop_prompt(worker(made, length=0), cipo).minimum_tokens() - 16
    return agent_loop_prompt(worker(made, length=least + len(QUESTION[0]["content"]) + 60), cipo)


def test_an_earlier_turn_of_the_assistant_is_counted_as_it_is_rendered():
    thought = "<think>" + "7" * 500 + "</think>"
    messages, reason = turns(FORGETFUL).build(QUESTION, thought + "2" * 60)
    assert reason is None and messages[1] == {"role": "assistant", "content": thought + "2" * 60}, "nothing is cut"
    messages, _ = turns(TEMPLATE).build(QUESTION, thought + "2" * 60)
    assert messages[1]["content"] == TAIL_MARK + "2" * 54
    messages, _ = turns(FORGETFUL).build(QUESTION, thought + "2" * 61)
    assert messages[1]["content"] == TAIL_MARK + "2" * 54
    # What was cut off in the middle of a thought is rendered whole.
    messages, _ = turns(FORGETFUL).build(QUESTION, "<think>" + "7" * 500)
    assert messages[1]["content"] == TAIL_MARK + "7" * 54


def test_an_attempt_of_which_the_chat_template_shows_nothing_is_none():
    assert turns(FORGETFUL).build(QUESTION, "<think>7</think>") == (None, "empty_attempt")
    assert turns(FORGETFUL, attempt_view="no_thinking").build(QUESTION, "<think>7")[1] is None
    assert turns(TEMPLATE).build(QUESTION, "<think>7</think>")[1] is None


@pytest.mark.parametrize("form", ["message", "assistant_turn"])
def test_a_chat_template_that_leaves_earlier_turns_out_is_refused(form):
    made = build_tokenizer([], [])
    made.chat_template = TEMPLATE.replace(
        "for message in messages", "for message in messages if message.role == 'user'"
    )
    config = OmegaConf.create(
        {"data": {}, "actor_rollout_ref": {"rollout": {"prompt_length": 1000}, "model": {"path": "m"}}}
    )
    cipo = CIPOConfig.from_mapping({"preset": "stream", "prompt": {"form": form}})
    if form == "message":
        check_prompt_length(config, cipo, made)
        return
    with pytest.raises(CIPOConfigError, match=r"prompt\.form=assistant_turn with m: its chat template leaves out"):
        check_prompt_length(config, cipo, made)


def test_the_room_that_several_attempts_take_is_named(tokenizer):
    config = OmegaConf.create({"data": {}, "actor_rollout_ref": {"rollout": {"prompt_length": 8}}})
    for attempts, named in ((1, "max_prompt_length + data.max"), (3, "max_prompt_length + 3 * data.max")):
        with pytest.raises(CIPOConfigError) as refused:
            check_prompt_length(
                config, CIPOConfig.from_mapping({"preset": "stream", "prompt": {"attempts": attempts}}), tokenizer
            )
        assert named in str(refused.value)


def test_the_assistants_own_turn_follows_all_that_belongs_to_the_question(tokenizer):
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]}
    result, prefill = {"role": "tool", "content": "it is 7"}, {"role": "assistant", "content": "So"}
    cipo = CIPOConfig.from_mapping({"preset": "stream", "prompt": OWN_TURN})
    for chat in (QUESTION, [*QUESTION, called, result]):
        for given in (chat, [*chat, prefill]):
            messages, reason = agent_loop_prompt(worker(tokenizer, length=600), cipo).build(given, "8")
            assert reason is None and messages[: len(chat)] == chat, "the beginning of an answer is left out"
            assert [message["role"] for message in messages[len(chat) :]] == ["assistant", "user"]
            assert messages[len(chat)]["content"] == "8"


AUX = ["+algorithm.cipo.aux.coef=0.1", "+algorithm.cipo.source=both"]
TRANSFER = ["+algorithm.cipo.transfer.kind=inject", "+algorithm.cipo.schedule=replay"]
NUDGE = "+algorithm.cipo.nudge.contexts=hints"
MEGATRON = ["model_engine=megatron", "actor_rollout_ref.rollout.name=vllm"]
VIRTUAL = "actor_rollout_ref.actor.megatron.virtual_pipeline_model_parallel_size=2"
ROUTING = "actor_rollout_ref.actor.megatron.router_replay.mode"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([NUDGE, "algorithm.rollout_correction.bypass_mode=true"], ["bypass_mode=True", "nudge.coef"]),
        ([NUDGE, "actor_rollout_ref.actor.policy_loss.loss_mode=geo_mean"], ["loss_mode=geo_mean", "nudge.coef"]),
        ([NUDGE, "distillation.enabled=true"], ["distillation.enabled=True", "nudge.coef"]),
        ([*MEGATRON, NUDGE, f"{ROUTING}=R3"], [f"{ROUTING}=R3", "nudge.coef"]),
        ([*MEGATRON, TRANSFER[0], f"{ROUTING}=R3"], [f"{ROUTING}=R3", "transfer.kind"]),
        (["skip.rollout_tq.enable=true"], ["skip.rollout_tq.enable=True"]),
        ([*MEGATRON, VIRTUAL], [VIRTUAL, "set actor_rollout_ref.actor.use_dynamic_bsz=true"]),
        (
            [
                *(*MEGATRON, VIRTUAL, "actor_rollout_ref.actor.use_dynamic_bsz=true"),
                "actor_rollout_ref.ref.log_prob_use_dynamic_bsz=false",
            ],
            [VIRTUAL, "set actor_rollout_ref.ref.log_prob_use_dynamic_bsz=true"],
        ),
        (
            [*MEGATRON, *AUX, f"{ROUTING}=R3"],
            [f"{ROUTING}=R3", "routing of rows that were never rolled out is not known"],
        ),
    ],
    ids=[
        "bypass mode, contexts",
        "geo mean, contexts",
        "distillation, contexts",
        "routing, contexts",
        "routing, transfer",
        "stored rollouts",
        "virtual stages",
        "virtual stages, reference",
        "routing",
    ],
)
def test_refused_with_one_line(overrides, words):
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose(
            "ppo_trainer",
            overrides=[
                "algorithm.adv_estimator=cipo",
                "+algorithm.cipo.preset=stream",
                "actor_rollout_ref.rollout.n=4",
                *overrides,
            ],
        )
    with pytest.raises(CIPOConfigError) as refused:
        settings.check_combination(config)
    assert all(word in str(refused.value) for word in words), str(refused.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["actor_rollout_ref.rollout.multi_turn.tool_config_path=tools.yaml", TRANSFER[0]],
        [*MEGATRON, VIRTUAL, "actor_rollout_ref.actor.use_dynamic_bsz=true"],
        [*MEGATRON, f"{ROUTING}=R3", AUX[0]],
    ],
    ids=["tools", "virtual stages", "routing"],
)
def test_what_comes_close_to_it_is_allowed(overrides):
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose(
            "ppo_trainer",
            overrides=[
                "algorithm.adv_estimator=cipo",
                "+algorithm.cipo.preset=stream",
                "actor_rollout_ref.rollout.n=4",
                *overrides,
            ],
        )
    settings.check_combination(config)
