"""Attempts under contexts, trained on the plain prompt; and what else asks for the plain prompt of such an attempt."""

from collections import Counter

import numpy as np
import pytest
import torch

from tests.fast.core.aux_loss.test_plan import chat, decode, encode
from tests.fast.core.test_nudge import CENTRED
from verl_cipo.core.anchors import Outcome
from verl_cipo.core.aux_loss.distill import COUNTED
from verl_cipo.core.aux_loss.plan import Shown, plan_aux, plan_metrics
from verl_cipo.core.aux_loss.transfer import regress_loss
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.metrics import check_names, nudge_metrics
from verl_cipo.core.prompts import CorrectionPrompt
from verl_cipo.core.rows import Mark, RowTable

# key -> (answer, right, context); the numbers of tests/fast/core/test_nudge.py, and a prompt without contexts.
ROWS = {
    "a_0_0": ("yes", True, 0),
    "a_1_0": ("no", False, 0),
    "a_2_0": ("yes!", True, 1),
    "a_3_0": ("nope", False, None),
    "b_0_0": ("well", True, None),
    "b_1_0": ("bad", False, None),
}
CORRECTION = {"a_c1_0_0": ("now yes", True, None)}


def planned(rows=ROWS, *, norm_by_std=False, tools=(), **knobs):
    """The plan, and key -> (source, what it is asked, weight in the distillation) of its rows; tools: what all prompts
    offer."""
    knobs = {"preset": "stream", "nudge": {"contexts": "hints"}} | knobs
    config = CIPOConfig.from_mapping(knobs)
    marks = []
    for key, (_, right, context) in rows.items():
        question = None if context is None else chat(f"{key[0]}?")
        noted = {"anchor_correct": False, **Outcome(0, 4, 0.0, 0.0)._asdict()} if "_c" in key else {}
        marks.append(Mark(correct=right, context=context, question=question, **noted))
    table = RowTable.of_marks(
        list(rows),
        marks,
        index=["ab".index(key[0]) for key in rows],
        scores=np.array([float(right) for _, right, _ in rows.values()], dtype=np.float32),
        tokens=np.ones(len(rows), dtype=np.int64),
    )

    def shown(keys):
        found = {}
        for key in keys:
            answer, _, context = rows[key]
            asked = f"{key[0]}?" + f" hint {context}" * (context is not None) + " try again" * ("_c" in key)
            found[key] = Shown(encode(f"<{asked}>"), encode(answer), chat(asked), bound=False)
        return found

    prompt = CorrectionPrompt(
        config.prompt,
        prompt_length=10_000,
        count_tokens=lambda messages: sum(len(message["content"]) for message in messages),
        encode=encode,
        decode=decode,
    )
    plan = plan_aux(
        table,
        shown,
        config=config,
        prompt=prompt,
        encode=lambda messages, tools=(): encode("[" + messages[-1]["content"] + "]" + "".join(tools)),
        offered=lambda _: tools,
        step=1,
        norm_by_std=norm_by_std,
    )
    return plan, {str(row.key): (row.source, decode(row.prompt_ids), row.distilled) for row in plan.rows}, table


def test_the_loss_is_the_weighted_log_probability():
    log_prob = torch.tensor([[-1.0, -7.0], [-0.5, -np.inf]], requires_grad=True)
    loss = regress_loss(log_prob, torch.tensor([[0.5, 0.25], [-1.0, 0.0]]))
    # -(.5 * -1 + .25 * -7 - 1 * -.5); no weight, no part in it.
    assert loss.item() == pytest.approx(1.75)
    loss.backward()
    assert log_prob.grad.tolist() == [[-0.5, -0.25], [1.0, 0.0]]


def test_attempts_under_contexts_are_appended_and_the_others_trained_where_they_are():
    plan, rows, _ = planned()
    # Six attempts; b has .5 and -.5.
    assert plan.distilled == pytest.approx({"a_3_0": CENTRED[3] / 6, "b_0_0": 0.5 / 6, "b_1_0": -0.5 / 6})
    assert {key: (source, asked) for key, (source, asked, _) in rows.items()} == {
        "a_n0_0_0": ("a_0_0", "<a?>"),
        "a_n1_0_0": ("a_1_0", "<a?>"),
        "a_n2_0_0": ("a_2_0", "<a?>"),
    }, "as the attempt at the plain prompt was asked"
    assert [weight for *_, weight in rows.values()] == pytest.approx([value / 6 for value in CENTRED[:3]])
    assert all(row.messages == chat("a?") for row in plan.rows)
    keys = [*ROWS, "a_n1_0_0", "pad"]
    expected = [0.0, 0.0, 0.0, CENTRED[3] / 6, 0.5 / 6, -0.5 / 6, CENTRED[1] / 6, 0.0]
    assert plan.nudge_weights(keys) == pytest.approx(expected)
    assert not any(plan.transfer_weights(keys)) and plan.signs(keys)[0] == [0.0] * len(keys)


def test_the_std_is_that_of_the_policys_advantages():
    plan, rows, _ = planned(norm_by_std=True)
    assert plan.distilled["a_3_0"] == pytest.approx(-0.865510 / 6, rel=1e-4)
    assert rows["a_n2_0_0"][2] == pytest.approx(0.907731 / 6, rel=1e-4)


def test_where_all_attempts_have_a_context_the_question_is_rendered():
    rows = {**ROWS, "a_3_0": ("nope", False, 1)}
    assert planned(rows)[1]["a_n3_0_0"][:2] == ("a_3_0", "[a?]")


def test_what_has_no_advantage_is_not_appended_but_counts():
    rows = {key: (answer, True, context) for key, (answer, _, context) in ROWS.items()}
    rows["b_1_0"] = ROWS["b_1_0"]
    plan, appended, _ = planned(rows)
    assert not appended and plan.distilled == pytest.approx({"b_0_0": 0.5 / 6, "b_1_0": -0.5 / 6})


def test_attempts_of_several_outputs_are_left_out_and_counted():
    rows = {**ROWS, "a_0_1": ("and yes", True, 0), "b_0_1": ("still", True, None)}
    plan, appended, _ = planned(rows)
    assert "a_n0_0_0" not in appended and "b_0_0" not in plan.distilled and "b_0_1" not in plan.distilled
    assert plan.counts["nudge/skipped/several_outputs"] == 2
    assert appended["a_n1_0_0"][2] == pytest.approx(CENTRED[1] / 6), "their scores count"


def test_without_weight_nothing_is_distilled():
    plan, rows, _ = planned(nudge={"contexts": "hints", "coef": 0.0})
    assert not rows and not plan.distilled


def test_counts_are_logged_where_it_is_on():
    plan, *_ = planned()
    metrics = plan_metrics([plan, plan], CIPOConfig.from_mapping({"nudge": {"contexts": "hints"}}))
    assert metrics["cipo/nudge/rows"] == 6.0 and metrics["cipo/rows/aux"] == 0.0
    assert {f"cipo/{name}" for name in COUNTED} <= set(metrics)
    check_names(metrics)
    assert not [name for name in plan_metrics([plan], CIPOConfig()) if "nudge" in name]


def test_metrics_of_attempts():
    *_, table = planned(ROWS | CORRECTION)
    metrics = nudge_metrics(table)
    check_names(metrics)
    assert metrics == {
        "cipo/nudge/context_share": 0.5,
        "cipo/nudge/accuracy_context": pytest.approx(2 / 3),
        "cipo/nudge/accuracy_plain": pytest.approx(1 / 3),
    }


def test_w2c_of_corrections_under_contexts_against_plain_ones_of_the_same_attempts():
    rows = {f"a_c1_{i}_0": ("x", i != 1, 0) for i in range(4)}
    rows |= {f"a_c1_{i}_0": ("x", i == 4, None) for i in range(4, 6)}
    # Of an attempt without contexts.
    rows |= {f"b_c1_{i}_0": ("x", True, None) for i in range(4)}
    *_, table = planned(ROWS | rows)
    metrics = nudge_metrics(table)
    check_names(metrics)
    assert (metrics["cipo/nudge/w2c_context"], metrics["cipo/nudge/w2c_plain"]) == (0.75, 0.5)
    assert metrics["cipo/nudge/context_share"] == 0.5, "of attempts"


def test_without_an_attempt_under_a_context_its_accuracy_is_left_out():
    *_, table = planned({key: row for key, row in ROWS.items() if key[0] == "b"})
    assert nudge_metrics(table) == {"cipo/nudge/context_share": 0.0, "cipo/nudge/accuracy_plain": 0.5}


# ---- the plain prompt of other rows


@pytest.mark.parametrize(("last", "asked"), [(None, "<a?>"), (1, "[a?]")])
def test_transfer_asks_the_plain_prompt(last, asked):
    rows = {**ROWS, "a_3_0": ("nope", False, last), **CORRECTION}
    plan, appended, _ = planned(
        rows, nudge={"contexts": "hints", "coef": 0.0}, transfer={"kind": "inject", "below": 0.125}
    )
    assert {key: row[:2] for key, row in appended.items()} == {"a_c1q_0_0": ("a_c1_0_0", asked)}
    assert plan.rows[0].messages == chat("a?")


@pytest.mark.parametrize("kind", ["nll", "contrastive"])
def test_pairs_ask_the_plain_question(kind):
    """Of prompt a; b is right alone, so with nll its wrong attempt learns from its own."""
    knobs = {"nudge": {"contexts": "hints", "coef": 0.0}, "source": "both", "aux": {"coef": 1.0, "kind": kind}}
    plan, *_ = planned(ROWS, replay_fraction=3.0, rho_adaptive=False, rho_init=0.0, **knobs)
    pairs = Counter(str(row.key)[:4] for row in plan.rows)
    assert pairs["a_p1"] and pairs["a_p3"]
    for row in plan.rows:
        text = row.messages[-1]["content"]
        assert f"{row.source[0]}?" in text and "hint" not in text, text


def test_a_pair_of_two_prompts_shows_plain_questions():
    rows = {key: ROWS[key] for key in ("a_0_0", "a_2_0")}
    rows |= {"b_0_0": ("well", False, 0), "b_1_0": ("bad", False, 1)}
    knobs = {"nudge": {"contexts": "hints", "coef": 0.0}, "source": "paired", "aux": {"coef": 1.0}}
    plan, *_ = planned(rows, rho_adaptive=False, rho_init=0.0, **knobs)
    adjacent = [row.messages[-1]["content"] for row in plan.rows if str(row.key).startswith("b_p")]
    assert adjacent and all("a?" in text and "b?" in text and "hint" not in text for text in adjacent)


def test_where_all_attempts_have_a_context_the_plain_prompt_offers_their_tools():
    rows = {"a_0_0": ("yes", True, 0), "a_1_0": ("no", False, 1)}
    _, appended, _ = planned(rows, tools=("<find>",))
    assert {asked for _, asked, _ in appended.values()} == {"[a?]<find>"} and len(appended) == 2
    plan, appended, _ = planned(rows, tools=None)
    assert not appended and plan.counts["nudge/skipped/unknown_tools"] == 2
