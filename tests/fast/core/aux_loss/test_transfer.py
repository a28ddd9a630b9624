"""What corrections find, trained on the plain prompt: by which rows, how much, and by what function."""

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.fast.core.aux_loss.test_plan import chat, decode, encode
from verl_cipo.core.anchors import Outcome
from verl_cipo.core.aux_loss.plan import TRANSFER_COUNTED, Shown, plan_aux, plan_metrics
from verl_cipo.core.aux_loss.transfer import injected, rare_attempts, regressed, transfer_loss, transfer_weights
from verl_cipo.core.config import CIPOConfig, TransferConfig
from verl_cipo.core.keys import RowKey
from verl_cipo.core.metrics import check_names
from verl_cipo.core.prompts import CorrectionPrompt
from verl_cipo.core.rows import CHOSEN, UNTRAINED, Mark, RowTable

# ---- the loss

LOG_PROB = torch.tensor([[-1.0, -7.0, -2.0], [-0.5, -4.0, 9.0]])
WEIGHTS = torch.tensor([[0.5, 0.5, 0.5], [-0.25, -0.25, 0.0]])


def loss_and_gradient(log_prob=LOG_PROB, weights=WEIGHTS, **options):
    log_prob = log_prob.clone().requires_grad_()
    loss = transfer_loss(log_prob, weights, **{"kind": "regress", "gamma": 0.1, "floor": None, **options})
    loss.backward()
    return loss.item(), log_prob.grad


def test_regress_is_the_weighted_log_probability():
    loss, gradient = loss_and_gradient()
    # -(.5 * -10 - .25 * -4.5)
    assert loss == pytest.approx(3.875)
    assert torch.equal(gradient, -WEIGHTS)


def test_tokens_below_the_floor_are_left_out():
    loss, gradient = loss_and_gradient(floor=-4.0)
    # -(.5 * -3 - .25 * -4.5); the one at the floor is in.
    assert loss == pytest.approx(0.375)
    assert gradient.tolist() == [[-0.5, 0.0, -0.5], [0.25, 0.25, 0.0]]
    assert loss_and_gradient(log_prob=LOG_PROB.index_fill(1, torch.tensor([1]), -math.inf), floor=-4.0)[0] == 1.375


@given(st.lists(st.floats(-20, 0), min_size=1, max_size=5), st.floats(-3, 3), st.floats(1e-3, 2))
def test_inject_is_shaped_and_so_is_its_gradient(log_probs, advantage, gamma):
    """f(p) = p / (p + gamma); by the log-probability its derivative is gamma p / (p + gamma)^2."""
    log_prob = torch.tensor([log_probs], dtype=torch.float64)
    loss, gradient = loss_and_gradient(log_prob, torch.full_like(log_prob, advantage), kind="inject", gamma=gamma)
    p = torch.tensor(log_probs, dtype=torch.float64).exp()
    assert loss == pytest.approx(-advantage * float((p / (p + gamma)).sum()))
    torch.testing.assert_close(gradient[0], -advantage * gamma * p / (p + gamma) ** 2)


def test_inject_by_hand():
    """p = .1 at gamma = .1: a half, slope a quarter."""
    log_prob = torch.full((1, 2), math.log(0.1))
    loss, gradient = loss_and_gradient(log_prob, torch.tensor([[2.0, 0.0]]), kind="inject")
    assert loss == pytest.approx(-1.0) and gradient.tolist() == [pytest.approx([-0.5, 0.0])]


def test_another_kind_is_an_error():
    with pytest.raises(ValueError, match="kind = 'none': expected regress or inject"):
        loss_and_gradient(kind="none")


# ---- weights


def test_a_row_is_spread_over_its_tokens():
    mask = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
    weights = transfer_weights(mask, torch.tensor([-0.6, 0.0, 1.0]), optimizer_steps=2)
    torch.testing.assert_close(weights, torch.tensor([[-0.4, -0.4, 0.0, -0.4], [0.0] * 4, [0.0] * 4]))
    assert weights.dtype == torch.float32


def test_what_weights_are_not_made_of():
    with pytest.raises(ValueError, match=r"token_mask \(2, 3\), row_weight \(3,\)"):
        transfer_weights(torch.ones(2, 3), torch.ones(3), optimizer_steps=1)
    with pytest.raises(ValueError, match="optimizer_steps = 0"):
        transfer_weights(torch.ones(2, 3), torch.ones(2), optimizer_steps=0)


@pytest.mark.parametrize("kind", ["regress", "inject"])
@pytest.mark.parametrize("split", [[[0], [1], [2]], [[2, 0], [1]]])
def test_micro_batches_add_up(kind, split):
    torch.manual_seed(1)
    log_prob, weights = -3 * torch.rand(3, 4), torch.randn(3, 4)
    options = {"kind": kind, "gamma": 0.1, "floor": -2.0}
    parts = [transfer_loss(log_prob[rows], weights[rows], **options) for rows in split]
    torch.testing.assert_close(sum(parts), transfer_loss(log_prob, weights, **options))


# ---- advantages


def test_the_advantage_over_the_attempts():
    outcome = Outcome(prompt_right=1, prompt_attempts=8, prompt_score=0.125, prompt_spread=0.33)
    assert regressed(1.0, outcome) == 0.875 and regressed(0.0, outcome) == -0.125


@pytest.mark.parametrize("score", [0.1, 0.7, -10.1, 100.1, 1000.3])
def test_what_rounding_leaves_of_equal_scores_is_no_advantage(score):
    """Scores of a batch are float32, the mean of the attempts was not: over their std, what is left would be much."""
    same, rounded = Outcome(0, 8, score, 0.0), float(np.float32(score))
    assert regressed(rounded, same) == injected(rounded, same, norm_by_std=True) == 0
    more = float(np.float32(score + 0.01))
    assert regressed(more, same) == pytest.approx(0.01, rel=1e-2)
    assert injected(more, same, norm_by_std=True) == pytest.approx(8 / 3, rel=1e-2)


def test_a_right_correction_among_failures_by_hand():
    """Scores 0 x 8 and 1: mean 1/9, variance (8 / 81 + 64 / 81) / 8 = 1/9: (8 / 9) / (1 / 3)."""
    failed = Outcome(prompt_right=0, prompt_attempts=8, prompt_score=0.0, prompt_spread=0.0)
    assert injected(1.0, failed, norm_by_std=True) == pytest.approx(8 / 3, rel=1e-5)
    assert injected(1.0, failed, norm_by_std=False) == pytest.approx(8 / 9)


SCORE = st.integers(-64, 64).map(lambda n: n / 64)


@given(st.lists(SCORE, min_size=1, max_size=9), SCORE, st.booleans())
def test_it_is_the_advantage_that_verl_would_give_to_one_more_row(scores, score, norm_by_std):
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

    outcome = Outcome(0, len(scores), float(np.mean(scores)), float(np.std(scores)))
    rewards = torch.tensor([*scores, score], dtype=torch.float64).unsqueeze(-1)
    expected, _ = compute_grpo_outcome_advantage(
        rewards,
        torch.ones_like(rewards),
        np.array(["u"] * len(rewards), dtype=object),
        norm_adv_by_std_in_grpo=norm_by_std,
    )
    assert injected(score, outcome, norm_by_std=norm_by_std) == pytest.approx(expected[-1].item(), rel=1e-3, abs=1e-3)


# ---- which rows

# key -> (answer, right, verdict on the anchor or None for an attempt); a has no right attempt of 4, b has 1 of 4.
ROWS = {
    "a_0_0": ("1", False, None),
    "a_1_0": ("2", False, None),
    "a_2_0": ("3", False, None),
    "a_3_0": ("4", False, None),
    "b_0_0": ("5", True, None),
    "b_1_0": ("6", False, None),
    "b_2_0": ("7", False, None),
    "b_3_0": ("8", False, None),
    "a_c1_0_0": ("yes", True, False),
    "a_c1_1_0": ("no", False, False),
    "a_c2_0_0": ("yes!", True, False),
    "b_c1_0_0": ("well", True, False),
    "b_c1_1_0": ("bad", False, False),
    "b_c0_0_0": ("still", True, True),
}
HAD = {"a": Outcome(0, 4, 0.0, 0.0), "b": Outcome(1, 4, 0.25, 3**0.5 / 4)}


def table_of(rows=ROWS, *, had=HAD, questions=None, index=None):
    """had: prompt -> outcome, by the first letter of a row's key; questions: row -> chat."""
    marks = []
    for key, (_, right, anchor) in rows.items():
        noted = had.get(key[0]) if anchor is not None else None
        question = (questions or {}).get(key)
        marks.append(
            Mark(correct=right, anchor_correct=anchor, question=question, **(noted._asdict() if noted else {}))
        )
    return RowTable.of_marks(
        list(rows),
        marks,
        index=index or ["abcd".index(key[0]) for key in rows],
        scores=np.array([float(right) for _, right, _ in rows.values()], dtype=np.float32),
        tokens=np.ones(len(rows), dtype=np.int64),
    )


def moved(
    rows=ROWS,
    *,
    kind="regress",
    below=0.25,
    own=False,
    bound=(),
    rejected=None,
    step=1,
    norm_by_std=True,
    table=None,
    tools=(),
    **knobs,
):
    """The plan; and key -> (source, prompt, weight) of its rows. rejected: rows without a token to train; tools: what
    all prompts offer."""
    transfer = {"kind": kind, "below": below, "own": own}
    config = CIPOConfig.from_mapping({"preset": "stream", "transfer": transfer, **knobs})
    prompt = CorrectionPrompt(config.prompt, prompt_length=999, count_tokens=len, encode=encode, decode=decode)

    def shown(keys):
        assert len(keys) == len(set(keys))
        asked = {key: f"{key[0]}?" + " try again" * ("_c" in key) for key in keys}
        return {key: Shown(encode(asked[key]), encode(rows[key][0]), chat(asked[key]), key in bound) for key in keys}

    plan = plan_aux(
        table or table_of(rows),
        shown,
        config=config,
        prompt=prompt,
        encode=lambda messages, tools=(): encode(messages[0]["content"] + "".join(tools)),
        offered=lambda _: tools,
        step=step,
        trained=None if rejected is None else np.array([key not in rejected for key in rows]),
        norm_by_std=norm_by_std,
    )
    for row in plan.rows:
        assert decode(row.prompt_ids) == row.messages[0]["content"] + "".join(tools or ())
    return plan, {str(row.key): (row.source, decode(row.prompt_ids), row.weight) for row in plan.rows}


def test_regress_trains_right_and_wrong_corrections_by_what_they_are_above_the_attempts():
    """Two prompts. a: A = 1, 0, 1, a mean over 3 of which the 0 trains nothing; b: A = .75 and -.25, over 2."""
    plan, rows = moved()
    assert rows == {
        "a_c1q_0_0": ("a_c1_0_0", "a?", pytest.approx(1 / 2 / 3)),
        "a_c2q_0_0": ("a_c2_0_0", "a?", pytest.approx(1 / 2 / 3)),
        "b_c1q_0_0": ("b_c1_0_0", "b?", pytest.approx(0.75 / 2 / 2)),
        "b_c1q_1_0": ("b_c1_1_0", "b?", pytest.approx(-0.25 / 2 / 2)),
    }
    assert plan.counts == Counter({"transfer/skipped/no_advantage": 1, "transfer/prompts": 2})
    assert all(row.sign == UNTRAINED and row.pair == -1 for row in plan.rows) and not plan.chosen


@pytest.mark.parametrize(("norm_by_std", "advantage"), [(True, 0.8 / 0.2**0.5), (False, 0.8)])
def test_inject_trains_one_right_correction_a_prompt_as_one_more_row_of_its_group(norm_by_std, advantage):
    """Two prompts, four attempts each. a: 0, 0, 0, 0, 1 have mean .2 and variance .2; b: mean .4, variance .3."""
    plan, rows = moved(kind="inject", norm_by_std=norm_by_std)
    assert len(rows) == 2
    ((source, asked, weight),) = [row for key, row in rows.items() if key[0] == "a"]
    assert source in ("a_c1_0_0", "a_c2_0_0") and asked == "a?"
    assert weight == pytest.approx(advantage / 4 / 2, rel=1e-5)
    other = 0.6 / 0.3**0.5 if norm_by_std else 0.6
    assert rows["b_c1q_0_0"] == ("b_c1_0_0", "b?", pytest.approx(other / 4 / 2, rel=1e-5))
    assert plan.counts == Counter({"transfer/prompts": 2})


def test_which_one_is_injected_is_drawn_evenly_by_seed_and_step():
    drawn = Counter(next(iter(moved(kind="inject", below=0, step=step)[1])) for step in range(1, 401))
    # 200 each, standard deviation 10.
    assert set(drawn) == {"a_c1q_0_0", "a_c2q_0_0"} and all(150 < count < 250 for count in drawn.values())
    assert len({next(iter(moved(kind="inject", below=0, seed=seed)[1])) for seed in range(12)}) == 2


@given(st.randoms(use_true_random=False), st.sampled_from(["regress", "inject"]), st.integers(1, 5))
def test_neither_arrival_nor_uids_decide(shuffle: random.Random, kind, step):
    rows = dict(shuffle.sample(list(ROWS.items()), len(ROWS)))
    again = moved(rows, kind=kind, step=step)[1]
    assert again == moved(kind=kind, step=step)[1]
    renamed = {key.replace("a_", "zz_", 1): row for key, row in rows.items()}
    other = table_of(renamed, had={"z": HAD["a"], "b": HAD["b"]}, index=[1 if key[0] == "b" else 0 for key in renamed])
    plan, _ = moved(renamed, kind=kind, step=step, table=other)
    assert {str(row.key).replace("zz_", "a_"): row.weight for row in plan.rows} == {
        key: weight for key, (_, _, weight) in again.items()
    }


@pytest.mark.parametrize(("below", "prompts"), [(0.0, "a"), (0.24, "a"), (0.25, "ab"), (1.0, "ab")])
def test_only_prompts_with_few_right_attempts_are_transferred(below, prompts):
    assert {key[0] for key in moved(below=below)[1]} == set(prompts)


def test_the_share_is_taken_with_a_tolerance():
    third = {"a": Outcome(1, 3, 1 / 3, 0.47)}
    assert moved(table=table_of(had=third), below=0.333333333333)[1]
    assert not moved(table=table_of(had=third), below=0.3333)[1]


@given(st.integers(1, 6), st.sampled_from(["regress", "inject"]))
def test_prompts_weigh_alike_however_many_there_are(others, kind):
    """P counts the prompts of the step, not those that are kept."""
    more = {f"{letter}_0_0": ("9", False, None) for letter in "cd"[: min(others, 2)]}
    alone, many = moved(kind=kind)[1], moved({**ROWS, **more}, kind=kind)[1]
    assert alone.keys() == many.keys()
    for key in alone:
        assert many[key][2] * (2 + len(more)) == pytest.approx(alone[key][2] * 2)


def test_a_rejected_correction_is_left_out():
    rows = moved(rejected=["b_c1_0_0", "a_1_0"])[1]
    assert "b_c1q_0_0" not in rows and rows["b_c1q_1_0"][2] == pytest.approx(-0.25 / 2)


def test_what_cannot_be_transferred_is_counted():
    plan, rows = moved(bound=["b_0_0", "a_c1_0_0"])
    assert list(rows) == ["a_c2q_0_0"] and plan.counts["transfer/skipped/no_text_question"] == 3
    plan, rows = moved(table=table_of(had={"b": HAD["b"]}))
    assert {key[0] for key in rows} == {"b"} and plan.counts["transfer/skipped/unknown_prompt"] == 3
    alone = {key: row for key, row in ROWS.items() if key[0] == "b" or "_c" in key}
    plan, rows = moved(alone)
    assert {key[0] for key in rows} == {"b"} and plan.counts["transfer/skipped/no_prompt"] == 3


@pytest.mark.parametrize("kind", ["regress", "inject"])
def test_a_correction_of_several_outputs_is_left_out(kind):
    """The last one answers a prompt that has the others in it."""
    rows = ROWS | {"a_c1_0_1": ("and so yes", True, False), "a_c2_0_1": ("yes!!", True, False)}
    plan, moved_rows = moved(rows, kind=kind)
    assert plan.counts["transfer/skipped/several_outputs"] == 2
    assert {key[0] for key in moved_rows} == {"b"}


@pytest.mark.parametrize(
    ("kind", "norm_by_std", "weight"), [("inject", True, 1.5 / 4), ("inject", False, 0.75 / 4), ("regress", True, 0.75)]
)
def test_rare_right_attempts_are_trained_where_they_are(kind, norm_by_std, weight):
    """Of two prompts a has no right attempt and b one of four: 3/4 above the mean, and of std 1/2."""
    plan, rows = moved(kind=kind, norm_by_std=norm_by_std, own=True)
    assert plan.own == {"b_0_0": pytest.approx(weight / 2, rel=1e-5)}
    found = plan.transfer_weights(["b_1_0", "b_0_0", *rows])
    assert found == [0.0, plan.own["b_0_0"], *(row[2] for row in rows.values())] and "b_0_0" in plan.trained
    assert rows == moved(kind=kind, norm_by_std=norm_by_std)[1], "corrections are what they are without"
    assert plan_metrics([plan], CIPOConfig(transfer=TransferConfig(kind=kind)))["cipo/transfer/own"] == 1
    assert not moved(kind=kind)[0].own and not moved(kind=kind, own=True, below=0.2)[0].own


@given(st.lists(st.tuples(SCORE, st.booleans()), min_size=2, max_size=9), st.sampled_from([-1.0, 5.0]), st.booleans())
def test_a_rare_attempt_has_the_advantage_that_verl_gives_it(attempts, shift, norm_by_std):
    """Whatever the verifier's scale; where that is not above 0 nothing is trained."""
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

    keys = [f"a_{i}_0" for i in range(len(attempts))]
    table = RowTable.of_marks(
        keys,
        [Mark(correct=right, further=i >= 4) for i, (_, right) in enumerate(attempts)],
        index=[0] * len(keys),
        scores=np.array([score + shift for score, _ in attempts], dtype=np.float32),
        tokens=np.ones(len(keys), dtype=np.int64),
    )
    rewards, uids = torch.from_numpy(table.scores.copy()).unsqueeze(-1), np.array(["a"] * len(keys), dtype=object)
    expected, _ = compute_grpo_outcome_advantage(
        rewards, torch.ones_like(rewards), uids, norm_adv_by_std_in_grpo=norm_by_std
    )
    config = CIPOConfig.from_mapping({"preset": "stream", "transfer": {"kind": "inject", "own": True, "below": 1}})
    found = rare_attempts(table, Counter(), config=config, norm_by_std=norm_by_std, usable=keys)
    for key, advantage, (_, right) in zip(keys, expected[:, 0].tolist(), attempts, strict=True):
        wanted = max(advantage, 0.0) / len(keys) if right else 0.0
        assert found.get(key, 0.0) == pytest.approx(wanted, rel=1e-3, abs=1e-4)


def test_of_several_right_attempts_each_has_a_share():
    twice = ROWS | {"b_1_0": ("6", True, None)}
    assert moved(twice, own=True, below=0.5)[0].own == {"b_0_0": 0.5 / 2 / 2, "b_1_0": 0.5 / 2 / 2}
    std = 3**-0.5
    found = moved(twice, kind="inject", own=True, below=0.5)[0].own
    assert found == {key: pytest.approx(0.5 / std / 4 / 2, rel=1e-5) for key in ("b_0_0", "b_1_0")}


def test_attempts_that_are_not_at_the_plain_prompt_alone_are_not_trained_by_transfer():
    assert not moved(own=True, rejected=["b_0_0"])[0].own
    several, _ = moved(ROWS | {"b_0_1": ("5, then", True, None)}, own=True)
    assert not several.own and several.counts["transfer/skipped/several_outputs"] == 1
    table = table_of()
    table.rows.context[list(ROWS).index("b_0_0")] = 1
    assert not moved(own=True, table=table)[0].own


def test_metrics_of_the_plans_of_a_step():
    config = CIPOConfig.from_mapping({"preset": "stream", "transfer": {"kind": "regress"}})
    metrics = plan_metrics([moved()[0], moved(below=0)[0]], config)
    assert metrics["cipo/transfer/rows"] == 4 + 2 and metrics["cipo/transfer/prompts"] == 2 + 1
    assert metrics["cipo/transfer/skipped/no_advantage"] == 2
    assert not any("aux" in name for name in metrics)
    check_names([*metrics, "cipo/transfer/loss", "cipo/transfer/mean_log_prob"])
    assert plan_metrics([], config) == {f"cipo/{name}": 0.0 for name in TRANSFER_COUNTED}


def test_transfer_and_the_auxiliary_loss_are_independent():
    """Each trains what it trains alone."""
    both, rows = moved(aux={"coef": 0.1})
    assert rows == moved()[1]
    alone, nothing = moved(kind="none", aux={"coef": 0.1})
    assert both.chosen == alone.chosen and len(both.chosen) == 3 and not nothing
    keys = [*ROWS, *rows]
    assert [key for key, sign in zip(keys, both.signs(keys)[0], strict=True) if sign == CHOSEN] == list(both.chosen)
    assert both.transfer_weights(keys) == [0.0] * len(ROWS) + [weight for _, _, weight in rows.values()]
    metrics = plan_metrics(
        [both], CIPOConfig.from_mapping({"preset": "stream", "aux": {"coef": 1}, "transfer": {"kind": "regress"}})
    )
    assert (metrics["cipo/aux/rows"], metrics["cipo/rows/aux"], metrics["cipo/transfer/rows"]) == (3, 0, 4)


@pytest.mark.parametrize("off", [{"kind": "none"}, {"replay_fraction": 0}])
def test_nothing_is_transferred_where_it_is_off(off):
    plan, rows = moved(**off)
    assert not rows and plan.counts == Counter()


# ---- schedule=replay: the attempts are of the step before, and several prompts may host one prompt's corrections

REPLAYED = {
    "a_0_0": ("1", True, None),
    "b_0_0": ("2", False, None),
    "a_c0_0_0": ("x", True, False),
    "a_c1_0_0": ("y", True, False),
    "b_c0_0_0": ("z", True, False),
    "b_c0_1_0": ("w", False, False),
}
OLD = Outcome(1, 8, 0.125, 0.33)


def replayed(kind, *, asked=("c?", "d?", "c?"), step=1, order=None, tools=()):
    """Prompt c is hosted by a and b, d by a; asked: of the anchors a_c0, a_c1, b_c0."""
    rows = {key: REPLAYED[key] for key in order or REPLAYED}
    of_group = dict(zip(("a_c0", "a_c1", "b_c0"), asked, strict=True))
    questions = {key: chat(of_group[group]) for key in rows if (group := RowKey.parse(key).group) in of_group}
    number = {"c?": 10, "d?": 11}
    index = [number[questions[key][0]["content"]] if key in questions else 0 for key in rows]
    table = table_of(rows, had={"a": OLD, "b": OLD}, questions=questions, index=index)
    return moved(rows, kind=kind, table=table, step=step, tools=tools, schedule="replay")


def test_a_replayed_question_offers_the_tools_that_the_correction_was_offered():
    plan, rows = replayed("regress", tools=("[find]",))
    assert rows and all(prompt.endswith("?[find]") for _, prompt, _ in rows.values())
    plan, unknown = replayed("regress", tools=None)
    assert not unknown and plan.counts["transfer/skipped/unknown_tools"] == len(rows)
    assert plan.counts["transfer/prompts"] == 0


def test_a_replayed_correction_answers_its_own_question():
    """Two prompts a step; of prompt c three corrections, a mean over them, of d one."""
    plan, rows = replayed("regress")
    assert rows == {
        "a_c0q_0_0": ("a_c0_0_0", "c?", pytest.approx(0.875 / 2 / 3)),
        "a_c1q_0_0": ("a_c1_0_0", "d?", pytest.approx(0.875 / 2)),
        "b_c0q_0_0": ("b_c0_0_0", "c?", pytest.approx(0.875 / 2 / 3)),
        "b_c0q_1_0": ("b_c0_1_0", "c?", pytest.approx(-0.125 / 2 / 3)),
    }
    assert plan.counts["transfer/prompts"] == 2


@given(st.permutations(list(REPLAYED)), st.integers(1, 9))
def test_one_replayed_correction_of_a_prompt_is_injected_whoever_hosts_it(order, step):
    _, rows = replayed("inject", step=step)
    assert Counter(asked for _, asked, _ in rows.values()) == Counter({"c?": 1, "d?": 1})
    assert replayed("inject", step=step, order=order)[1] == rows


def test_prompts_that_share_an_index_are_told_apart_by_their_question():
    _, rows = replayed("inject", asked=("c?", "c?", "c?"))
    assert len(rows) == 1
    rows = dict(REPLAYED)
    table = table_of(
        rows,
        had={"a": OLD, "b": OLD},
        questions={key: chat(f"{key}?") for key in rows if "_c" in key},
        index=[0] * len(rows),
    )
    assert len(moved(rows, kind="inject", table=table, schedule="replay")[1]) == 3


def test_a_replayed_correction_is_never_trained_on_the_prompt_of_its_host():
    table = table_of(REPLAYED, had={"a": OLD, "b": OLD})
    plan, rows = moved(REPLAYED, table=table, schedule="replay")
    assert not rows and plan.counts["transfer/skipped/no_text_question"] == 4
    # Rolled out under replay, trained after the schedule was changed.
    table = table_of(REPLAYED, had={"a": OLD, "b": OLD}, index=[0, 1, 5, 6, 7, 7])
    plan, rows = moved(REPLAYED, table=table)
    assert not rows and plan.counts["transfer/skipped/no_prompt"] == 4
