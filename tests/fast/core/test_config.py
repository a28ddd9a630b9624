import math
from dataclasses import FrozenInstanceError, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_cipo.core.config import AuxConfig, CIPOConfig, CIPOConfigError, NudgeConfig, PromptConfig, TransferConfig

DEFAULTS = {
    "preset": "balanced",
    "replay_fraction": 1.0,
    "source": "both",
    "n_corrections": None,
    "schedule": "auto",
    "lambda_corr": 1.0,
    "lambda_risk": 1.0,
    "rho_init": 0.3,
    "rho_min": 0.2,
    "rho_max": 0.8,
    "rho_target": 0.8,
    "rho_gain": 0.8,
    "rho_drop_gain": 0.3,
    "rho_patience_gain": 0.05,
    "rho_adaptive": True,
    "delta_low": 0.375,
    "delta_high": 0.75,
    "correct_threshold": 0.5,
    "verifier_retries": 2,
    "second_verifier": None,
    "second_verifier_timeout": 120.0,
    "correction_timeout": 3600.0,
    "report_timeout": 3600.0,
    "guard": "warn",
    "val_corrections": 1,
    "budget": "auto",
    "keep_all_wrong": 0.0,
    "seed": 1,
    "manager": None,
    "prompt": {
        "template": "math",
        "attempt_view": "no_thinking",
        "on_overflow": "tail",
        "max_attempt_tokens": None,
        "thinking_open": "<think>",
        "thinking_close": "</think>",
        "attempts": 1,
        "verdict": "hidden",
        "form": "message",
        "standalone": True,
    },
    "aux": {"kind": "nll", "coef": 0.1, "by_signal": True, "beta": 2.0},
    "transfer": {"kind": "inject", "coef": 8.0, "below": 0.125, "own": False, "gamma": 0.1, "floor": -5.0},
    "nudge": {
        "contexts": None,
        "template": "{question}\n\nUse this strategy: {context}",
        "plain_share": 0.5,
        "between": 1.1,
        "corrections": False,
        "coef": 0.1,
    },
}
SECTIONS = [key for key, value in DEFAULTS.items() if isinstance(value, dict)]
LEAVES = [key for key in DEFAULTS if key not in SECTIONS] + [f"{s}.{key}" for s in SECTIONS for key in DEFAULTS[s]]


def nested(key, value):
    section, _, name = key.rpartition(".")
    return {section: {name: value}} if section else {key: value}


def message_of(mapping, **kwargs):
    with pytest.raises(CIPOConfigError) as caught:
        CIPOConfig.from_mapping(mapping, **kwargs)
    return str(caught.value)


def test_defaults():
    assert CIPOConfig().to_mapping() == DEFAULTS
    assert CIPOConfig.from_mapping({}) == CIPOConfig()
    assert CIPOConfig.from_mapping({"prompt": {}}) == CIPOConfig()


PLAIN = {
    "source": "resample",
    "budget": "fixed",
    "aux.coef": 0.0,
    "aux.by_signal": False,
    "transfer.kind": "none",
    "prompt.standalone": False,
}
BALANCED = {
    "source": "both",
    "budget": "auto",
    "aux.coef": 0.1,
    "aux.by_signal": True,
    "transfer.kind": "inject",
    "transfer.coef": 8.0,
    "prompt.standalone": True,
}
FOLLOWED = [
    ({}, BALANCED),
    (
        {
            "source": None,
            "budget": None,
            "transfer": {"kind": None, "coef": None},
            "aux": {"coef": None, "by_signal": None},
        },
        BALANCED,
    ),
    ({"preset": "stream"}, PLAIN),
    ({"replay_fraction": 0}, PLAIN),
    ({"source": "paired"}, PLAIN | {"source": "paired", "aux.coef": 0.1, "aux.by_signal": True}),
    ({"preset": "stream", "source": "paired"}, PLAIN | {"source": "paired", "aux.coef": 0.1}),
    ({"aux": {"by_signal": False}}, BALANCED | {"aux.by_signal": False}),
    ({"preset": "stream", "aux": {"by_signal": True}}, PLAIN | {"aux.by_signal": True}),
    ({"source": "resample"}, BALANCED | {"source": "resample", "aux.coef": 0.0}),
    ({"budget": "fixed"}, BALANCED | {"budget": "fixed"}),
    ({"keep_all_wrong": 0.2}, BALANCED),
    ({"aux": {"coef": 0}}, BALANCED | {"aux.coef": 0.0}),
    (
        {"transfer": {"kind": "none"}},
        BALANCED | {"transfer.kind": "none", "transfer.coef": 0, "prompt.standalone": False},
    ),
    ({"transfer": {"kind": "regress"}}, BALANCED | {"transfer.kind": "regress", "transfer.coef": 2.0}),
    ({"transfer": {"coef": 1.5}}, BALANCED | {"transfer.coef": 1.5}),
    ({"prompt": {"template": "{question}{attempt}"}}, BALANCED | {"prompt.standalone": False}),
    ({"prompt": {"template": "code"}}, BALANCED),
    (
        {"preset": "stream", "transfer": {"kind": "inject"}},
        PLAIN | {"transfer.kind": "inject", "prompt.standalone": True},
    ),
    ({"preset": "stream", "budget": "auto"}, PLAIN | {"budget": "auto"}),
    ({"preset": "stream", "source": "both"}, PLAIN | {"source": "both", "aux.coef": 0.1}),
]


@pytest.mark.parametrize(("given", "expected"), FOLLOWED)
def test_what_is_null_follows_the_preset_and_the_other_knobs(given, expected):
    mapping = CIPOConfig.from_mapping(given).to_mapping()
    found = {key: mapping[key.partition(".")[0]] for key in expected}
    found = {key: value[key.partition(".")[2]] if isinstance(value, dict) else value for key, value in found.items()}
    assert found == expected


def test_a_mapping_is_read_and_given_back():
    values = {"rho_init": 0.5, "n_corrections": 4, "prompt": {"template": "code", "max_attempt_tokens": 64}}
    config = CIPOConfig.from_mapping(values)
    assert (config.rho_init, config.n_corrections, config.seed) == (0.5, 4, 1)
    assert (config.prompt.template, config.prompt.max_attempt_tokens, config.prompt.on_overflow) == ("code", 64, "tail")
    assert CIPOConfig.from_mapping(config.to_mapping()) == config
    assert values["prompt"] == {"template": "code", "max_attempt_tokens": 64}


def test_ints_become_floats_where_floats_are_meant():
    config = CIPOConfig.from_mapping({"lambda_corr": 2, "rho_max": 1})
    assert isinstance(config.lambda_corr, float) and isinstance(config.rho_max, float)


def test_frozen():
    with pytest.raises(FrozenInstanceError):
        CIPOConfig().seed = 2


BAD = [
    ("preset", "old", "one of balanced, stream"),
    ("preset", None, "one of balanced, stream"),
    ("replay_fraction", -0.1, "a finite number >= 0"),
    ("replay_fraction", "1", "a finite number >= 0"),
    ("replay_fraction", None, "a finite number >= 0"),
    ("replay_fraction", True, "a finite number >= 0"),
    ("replay_fraction", 10**400, "a finite number >= 0"),
    ("n_corrections", 1, "an integer >= 2 or null"),
    ("n_corrections", 2.0, "an integer >= 2 or null"),
    ("n_corrections", True, "an integer >= 2 or null"),
    ("schedule", "eager", "one of streaming, barrier, replay"),
    ("schedule", None, "one of streaming, barrier, replay"),
    ("schedule", ["streaming"], "one of streaming, barrier, replay"),
    ("source", "pairs", "one of resample, paired, both"),
    ("budget", "moving", "one of fixed, auto"),
    ("guard", True, "off, warn or adapt"),
    ("guard", "on", "off, warn or adapt"),
    ("verifier_retries", -1, "an integer >= 0"),
    ("second_verifier", 3, "pkg://package.module:function or path/to/file.py:function of a"),
    ("second_verifier_timeout", -1.0, "a finite number >= 0"),
    ("correction_timeout", -1.0, "a finite number >= 0"),
    ("report_timeout", None, "a finite number >= 0"),
    ("aux.kind", "dpo", "one of nll, contrastive"),
    ("aux.coef", -0.1, "a finite number >= 0"),
    ("aux.by_signal", "yes", "true or false or null"),
    ("aux.beta", None, "a finite number >= 0"),
    ("transfer.kind", "distil", "one of none, inject, regress"),
    ("transfer.coef", -0.1, "a finite number >= 0"),
    ("transfer.below", 1.1, "a finite number in [0, 1]"),
    ("transfer.below", None, "a finite number in [0, 1]"),
    ("transfer.own", "yes", "true or false"),
    ("transfer.gamma", 0, "a finite number > 0"),
    ("transfer.gamma", math.inf, "a finite number > 0"),
    ("transfer.floor", 0.1, "a finite number <= 0 or null"),
    ("transfer.floor", -math.inf, "a finite number <= 0 or null"),
    ("transfer.floor", "none", "a finite number <= 0 or null"),
    ("lambda_corr", math.nan, "a finite number >= 0"),
    ("lambda_corr", math.inf, "a finite number >= 0"),
    ("lambda_corr", False, "a finite number >= 0"),
    ("lambda_risk", -1, "a finite number >= 0"),
    ("rho_init", 1.01, "a finite number in [0, 1]"),
    ("rho_min", -0.01, "a finite number in [0, 1]"),
    ("rho_max", 2, "a finite number in [0, 1]"),
    ("rho_target", 1.5, "a finite number in [0, 1]"),
    ("rho_gain", -1.0, "a finite number >= 0"),
    ("rho_drop_gain", -1.0, "a finite number >= 0"),
    ("rho_patience_gain", -1.0, "a finite number >= 0"),
    ("rho_adaptive", 1, "true or false"),
    ("rho_adaptive", "false", "true or false"),
    ("delta_low", -0.1, "a finite number in [0, 1]"),
    ("delta_high", 1.1, "a finite number in [0, 1]"),
    ("correct_threshold", math.inf, "a finite number"),
    ("correct_threshold", "high", "a finite number"),
    ("val_corrections", -1, "an integer >= 0"),
    ("val_corrections", 1.5, "an integer >= 0"),
    ("keep_all_wrong", 1.5, "a finite number in [0, 1]"),
    ("manager", 3, "a text or null"),
    ("seed", 1.0, "an integer"),
    ("seed", None, "an integer"),
    ("prompt", None, "a mapping with the keys template, attempt_view, on_overflow, max_attempt_tokens"),
    ("prompt", "math", "a mapping with the keys template"),
    ("prompt.template", "", "math, code, the path"),
    ("prompt.template", 3, "math, code, the path"),
    ("prompt.attempt_view", "head", "one of whole, no_thinking, tail"),
    ("prompt.on_overflow", "cut", "one of tail, skip"),
    ("prompt.max_attempt_tokens", 15, "an integer >= 16 or null"),
    ("prompt.max_attempt_tokens", 16.0, "an integer >= 16 or null"),
    ("prompt.thinking_open", "", "a text"),
    ("prompt.thinking_close", 3, "a text"),
    ("prompt.attempts", 0, "an integer in [1, 16]"),
    ("prompt.attempts", 17, "an integer in [1, 16]"),
    ("prompt.attempts", 2.0, "an integer in [1, 16]"),
    ("prompt.verdict", "shown", "one of hidden, told"),
    ("prompt.form", "turn", "one of message, assistant_turn"),
    ("prompt.standalone", "yes", "true or false"),
    ("nudge.contexts", ["hints"], "a text or null"),
    ("nudge.contexts", "", "a text or null"),
    ("nudge.template", "{question}", "a text that holds {question} and {context} once each"),
    ("nudge.template", "{context} {question} {question}", "a text that holds {question} and {context} once each"),
    ("nudge.template", "${oc.env:A} {context} {question}", "and no ${"),
    ("nudge.template", None, "a text that holds {question} and {context} once each"),
    ("nudge.plain_share", 1.1, "a finite number in [0, 1]"),
    ("nudge.between", -0.1, "a finite number >= 0"),
    ("nudge.corrections", 1, "true or false"),
    ("nudge.coef", "on", "a finite number >= 0"),
]


@pytest.mark.parametrize(("key", "value", "allowed"), BAD)
def test_a_bad_value_names_key_value_and_what_is_allowed(key, value, allowed):
    message = message_of(nested(key, value))
    assert f"algorithm.cipo.{key} = {value!r}" in message
    assert allowed in message


def test_every_knob_has_a_bad_value_above():
    assert set(LEAVES) <= {key for key, _, _ in BAD}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("replay_fraction", 0),
        ("n_corrections", 2),
        ("schedule", "barrier"),
        ("lambda_corr", 0),
        ("lambda_risk", 0.0),
        ("rho_min", 0),
        ("rho_max", 1),
        ("rho_target", 1),
        ("delta_low", 0),
        ("delta_high", 1),
        ("correct_threshold", -1.5),
        ("val_corrections", 0),
        ("seed", -3),
        ("prompt.template", "/some/file.txt"),
        ("prompt.attempt_view", "tail"),
        ("prompt.on_overflow", "skip"),
        ("prompt.max_attempt_tokens", 16),
        ("prompt.attempts", 16),
    ],
)
def test_the_ends_of_the_ranges_are_allowed(key, value):
    config = CIPOConfig.from_mapping(nested(key, value))
    holder = config.prompt if key.startswith("prompt.") else config
    assert getattr(holder, key.removeprefix("prompt.")) == value


def test_a_rho_that_does_not_adapt_may_be_outside_the_range():
    assert CIPOConfig(rho_adaptive=False, rho_init=0.0).rho_init == 0.0
    assert "rho_min <= rho_max" in message_of({"rho_adaptive": False, "rho_min": 0.5, "rho_max": 0.4})


@pytest.mark.parametrize(
    ("knobs", "named", "allowed"),
    [
        ({"replay_fraction": 0}, "algorithm.cipo.replay_fraction = 0.0", "above 0"),
        ({"source": "paired", "aux": {"coef": 0.1}}, "algorithm.cipo.source = 'paired'", "'resample' or 'both'"),
    ],
)
def test_a_budget_moves_sessions_of_sampled_corrections_only(knobs, named, allowed):
    message = message_of({"budget": "auto", **knobs})
    assert "algorithm.cipo.budget = 'auto'" in message and named in message and allowed in message
    CIPOConfig.from_mapping({"budget": "fixed", **knobs})
    CIPOConfig.from_mapping({"budget": "auto", "source": "both", "aux": {"coef": 0.1}})


@pytest.mark.parametrize(
    ("knobs", "named", "allowed"),
    [
        ({"nudge": {}}, "algorithm.cipo.nudge.contexts = None", "a column of the data"),
        ({"replay_fraction": 0}, "algorithm.cipo.replay_fraction = 0.0", "above 0"),
        ({"source": "paired", "aux": {"coef": 0.1}}, "algorithm.cipo.source = 'paired'", "'resample' or 'both'"),
    ],
)
def test_corrections_under_contexts_need_both(knobs, named, allowed):
    knobs = {"nudge": {"contexts": "hints"}} | knobs
    message = message_of(knobs | {"nudge": knobs["nudge"] | {"corrections": True}})
    assert "algorithm.cipo.nudge.corrections = True" in message and named in message and allowed in message
    CIPOConfig.from_mapping(knobs)
    CIPOConfig.from_mapping({"nudge": {"contexts": "hints", "corrections": True}})


@pytest.mark.parametrize("knobs", [{"preset": "stream"}, {"source": "paired"}, {"transfer": {"kind": "none"}}])
def test_right_attempts_are_trained_by_a_term_that_is_on(knobs):
    message = message_of(knobs | {"transfer": knobs.get("transfer", {}) | {"own": True}})
    for part in ("algorithm.cipo.transfer.own = True", "transfer.kind = 'none'", "'inject' or 'regress'"):
        assert part in message
    CIPOConfig.from_mapping(knobs)
    CIPOConfig.from_mapping({"preset": "stream", "transfer": {"kind": "regress", "own": True}})
    # Without corrections it is plain GRPO, whatever their knobs say.
    CIPOConfig.from_mapping(knobs | {"replay_fraction": 0, "source": "resample", "transfer": {"own": True}})


def test_order_of_rho_and_of_the_medium_band():
    message = message_of({"rho_init": 0.1})
    for part in ("algorithm.cipo.rho_min = 0.2", "algorithm.cipo.rho_init = 0.1", "rho_min <= rho_init <= rho_max"):
        assert part in message
    assert "algorithm.cipo.rho_max = 0.25" in message_of({"rho_max": 0.25})
    message = message_of({"delta_low": 0.8})
    for part in ("algorithm.cipo.delta_low = 0.8", "algorithm.cipo.delta_high = 0.75", "delta_low <= delta_high"):
        assert part in message
    equal = {"rho_min": 0.4, "rho_init": 0.4, "rho_max": 0.4, "delta_low": 0.5, "delta_high": 0.5}
    assert CIPOConfig.from_mapping(equal).rho_max == 0.4


def test_an_unknown_key_names_itself_the_nearest_and_the_allowed_ones():
    message = message_of({"lambda_cor": 0.7})
    assert "algorithm.cipo.lambda_cor = 0.7" in message
    assert "Did you mean algorithm.cipo.lambda_corr?" in message
    assert all(key in message for key in DEFAULTS)
    message = message_of({"prompt": {"overflow": "skip"}})
    assert "algorithm.cipo.prompt.overflow = 'skip'" in message
    assert "Did you mean algorithm.cipo.prompt.on_overflow?" in message
    assert all(key in message for key in DEFAULTS["prompt"])


def test_a_prompt_key_on_the_wrong_level_is_pointed_to_its_place():
    assert "Did you mean algorithm.cipo.prompt.attempt_view?" in message_of({"attempt_view": "tail"})


def test_an_unknown_key_that_is_near_nothing_gets_no_hint():
    assert "Did you mean" not in message_of({"zzz": 1})
    assert "algorithm.cipo.7 = 'x'" in message_of({7: "x"})


def test_the_path_of_the_section_is_in_every_message():
    assert "a.b.rho_init = 2" in message_of({"rho_init": 2}, path="a.b")
    assert "a.b.prompt.on_overflow = 2" in message_of({"prompt": {"on_overflow": 2}}, path="a.b")
    assert "a.b.rho_init = 0.1" in message_of({"rho_init": 0.1}, path="a.b")
    assert "a.b.nope = 2" in message_of({"nope": 2}, path="a.b")
    assert message_of(None, path="a.b").startswith("a.b = None")


def test_construction_in_code_is_validated_too():
    with pytest.raises(CIPOConfigError, match=r"algorithm\.cipo\.rho_init = 3"):
        CIPOConfig(rho_init=3)
    with pytest.raises(CIPOConfigError, match=r"algorithm\.cipo\.prompt\.on_overflow = 'x'"):
        PromptConfig(on_overflow="x")
    with pytest.raises(CIPOConfigError, match=r"algorithm\.cipo\.prompt = \{\}"):
        CIPOConfig(prompt={})  # pyright: ignore[reportArgumentType]


values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.integers(), max_size=2)
)


@given(key=st.sampled_from(LEAVES), value=values)
def test_any_value_is_either_kept_or_named_in_the_error(key, value):
    try:
        config = CIPOConfig.from_mapping(nested(key, value))
    except CIPOConfigError as error:
        assert f"algorithm.cipo.{key} = {value!r}" in str(error)
        assert "expected" in str(error)
    else:
        section, _, name = key.rpartition(".")
        kept = getattr(getattr(config, section) if section else config, name)
        if key == "guard" and value is False:
            value = "off"
        assert kept == value and isinstance(kept, bool) == isinstance(value, bool)


def test_no_knob_is_undocumented_by_accident():
    assert {knob.name for knob in fields(CIPOConfig)} == set(DEFAULTS)
    assert {knob.name for knob in fields(PromptConfig)} == set(DEFAULTS["prompt"])
    assert {knob.name for knob in fields(AuxConfig)} == set(DEFAULTS["aux"])
    assert {knob.name for knob in fields(TransferConfig)} == set(DEFAULTS["transfer"])
    assert {knob.name for knob in fields(NudgeConfig)} == set(DEFAULTS["nudge"])


def test_contexts_are_off_without_a_column_and_distilled_with_a_weight():
    off = CIPOConfig.from_mapping({"preset": "stream"})
    assert not off.nudges and not off.distils and not off.adds_loss
    on = CIPOConfig.from_mapping({"preset": "stream", "nudge": {"contexts": "hints"}})
    assert on.nudges and on.distils and on.adds_loss and on.appends_rows
    alone = CIPOConfig.from_mapping({"preset": "stream", "nudge": {"contexts": "hints", "coef": 0}})
    assert alone.nudges and not alone.distils and not alone.adds_loss and not alone.appends_rows


def test_guard_off_survives_yaml():
    """YAML reads a bare `off` as false."""
    assert CIPOConfig.from_mapping({"guard": False}).guard == "off"


def test_pairs_without_an_auxiliary_loss_would_train_nothing():
    assert "algorithm.cipo.aux.coef above 0" in message_of({"source": "paired", "aux": {"coef": 0}})
    config = CIPOConfig.from_mapping({"source": "paired", "aux": {"coef": 0.1}})
    assert config.pairs and not config.rolls_out


@pytest.mark.parametrize("kind", ["inject", "regress"])
def test_transfer_needs_sampled_corrections(kind):
    message = message_of({"source": "paired", "aux": {"coef": 0.1}, "transfer": {"kind": kind}})
    assert message.startswith(f"algorithm.cipo.transfer.kind = '{kind}' with algorithm.cipo.source = 'paired'")
    assert "'none'" in message and "'resample' or 'both'" in message
    both = CIPOConfig.from_mapping({"source": "both", "aux": {"coef": 0.1}, "transfer": {"kind": kind}})
    assert both.transfers and both.adds_loss and both.appends_rows


def test_transfer_is_off_without_weight_and_without_corrections():
    assert CIPOConfig.from_mapping({"preset": "stream", "transfer": {"kind": "inject"}}).transfers
    for off in (
        {"transfer": {"kind": "inject", "coef": 0}},
        {"transfer": {"kind": "inject"}, "replay_fraction": 0},
    ):
        config = CIPOConfig.from_mapping({"preset": "stream"} | off)
        assert not config.transfers and not config.adds_loss and not config.appends_rows
    assert CIPOConfig.from_mapping({"transfer": {"floor": None}}).transfer.floor is None


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_the_option_that_transfer_replaces_says_so(value):
    message = message_of({"aux": {"coef": 0.1, "distill_below": value}})
    assert message.startswith(f"algorithm.cipo.aux.distill_below = {value}: this option is gone")
    assert "algorithm.cipo.transfer.kind=regress" in message and "algorithm.cipo.transfer.below" in message


def test_where_corrections_come_from():
    both = CIPOConfig.from_mapping({"source": "both", "aux": {"coef": 0.1}})
    assert both.pairs and both.rolls_out
    stream = CIPOConfig(preset="stream")
    assert stream.rolls_out and not stream.pairs
    off = CIPOConfig.from_mapping({"source": "both", "aux": {"coef": 0.1}, "replay_fraction": 0})
    assert not off.pairs and not off.rolls_out


def test_thinking_has_a_beginning_and_another_end():
    said = message_of({"prompt": {"thinking_open": "%%", "thinking_close": "%%"}})
    assert "algorithm.cipo.prompt.thinking_open" in said and "'%%'" in said and "differ" in said


def test_the_assistants_own_turn_is_one_attempt():
    said = message_of({"prompt": {"attempts": 2, "form": "assistant_turn"}})
    assert "algorithm.cipo.prompt.attempts = 2 with algorithm.cipo.prompt.form = 'assistant_turn'" in said
    assert "use algorithm.cipo.prompt.attempts = 1 or" in said
    assert CIPOConfig.from_mapping({"prompt": {"attempts": 1, "form": "assistant_turn"}}).prompt.form


@pytest.mark.parametrize(
    ("knobs", "allowed"),
    [
        ({}, False),
        ({"rho_adaptive": False}, False),
        ({"rho_init": 0.0, "rho_min": 0.0}, False),
        ({"rho_adaptive": False, "rho_init": 0.0}, True),
        ({"rho_max": 0.0, "rho_init": 0.0, "rho_min": 0.0}, True),
        ({"replay_fraction": 0}, True),
        ({"source": "paired", "aux": {"coef": 0.1}}, False),
        ({"source": "paired", "rho_adaptive": False, "rho_init": 0.0}, True),
        ({"source": "paired", "aux": {"coef": 0.1, "kind": "contrastive"}}, True),
        ({"source": "both", "aux": {"coef": 0.1}}, False),
    ],
)
def test_wrong_is_told_where_no_right_anchor_is_drawn(knobs, allowed):
    told = knobs | {"prompt": {"verdict": "told"}}
    if allowed:
        config = CIPOConfig.from_mapping(told)
        assert config.wrong_alone and not config.draws_right
        return
    said = message_of(told)
    assert said.startswith("algorithm.cipo.prompt.verdict = 'told' with algorithm.cipo.rho_adaptive = ")
    assert "set algorithm.cipo.rho_adaptive=false and algorithm.cipo.rho_init=0, or use 'hidden'" in said
    assert not CIPOConfig.from_mapping(knobs).wrong_alone


def test_what_a_validation_is_asked_with():
    prompt = PromptConfig(attempts=4, verdict="told", standalone=True, template="code")
    assert prompt.in_validation == PromptConfig(standalone=True, template="code")


def test_auto_is_replay_where_prompts_are_trained_as_they_come():
    auto = CIPOConfig()
    assert auto.scheduled(asynchronous=False).schedule == "streaming"
    assert auto.scheduled(asynchronous=True).schedule == "replay"
    assert CIPOConfig(schedule="barrier").scheduled(asynchronous=True).schedule == "barrier"


def test_a_threshold_for_each_data_source():
    one, several = CIPOConfig(correct_threshold=0.2), CIPOConfig(correct_threshold={"apps": 0.9, "default": -1})
    assert one.threshold("apps") == one.threshold(None) == 0.2
    assert [several.threshold(source) for source in ("apps", "gsm8k", None)] == [0.9, -1.0, -1.0]
    assert CIPOConfig(correct_threshold={"apps": 0.9}).threshold("gsm8k") == 0.5
    assert CIPOConfig.from_mapping(several.to_mapping()) == several
    for wrong in ({}, {"apps": "high"}, {1: 0.5}, {"apps": math.nan}):
        with pytest.raises(CIPOConfigError, match=r"correct_threshold = .*a mapping of data sources to finite numbers"):
            CIPOConfig(correct_threshold=wrong)
