"""The two streams, by hand and by property. Against verl's own GRPO: test_advantage_verl.py."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from verl_cipo.core import advantage
from verl_cipo.core.advantage import (
    BASE,
    CORRECTION,
    LOSS_AGG_MODES,
    PADDING,
    PLAIN,
    SEQ_MEAN_MODES,
    Rows,
    correction_relative,
    group_relative,
    stream_scales,
    term_scale,
)
from verl_cipo.core.advantage import two_stream_advantage as two_stream

MODES = st.sampled_from(LOSS_AGG_MODES)


def rows(table):
    """One line a row: stream, group, session, final, correct, anchor_correct."""
    columns = list(zip(*table, strict=True)) or [()] * 6
    dtypes = (np.int8, object, object, bool, bool, bool)
    return Rows(*(np.array(column, dtype=dtype) for column, dtype in zip(columns, dtypes, strict=True)))


def rewards(scores, lengths, width):
    """(N, T) with the score on the last token of each row, and the mask of its length."""
    mask = torch.tensor([[t < length for t in range(width)] for length in lengths], dtype=torch.int64)
    values = torch.zeros(len(scores), width)
    for i, (score, length) in enumerate(zip(scores, lengths, strict=True)):
        values[i, max(length - 1, 0)] = score
    return values, mask


HOW = {"lambda_corr": 1.0, "lambda_risk": 1.0, "norm_by_std": False, "loss_agg_mode": "token-sum"}

# ---- Rows


def test_rows_are_checked():
    good = rows([(0, "a", "s", True, True, False)] * 2)
    with pytest.raises(ValueError, match=r"'group': \(1,\)"):
        Rows(good.stream, good.group[:1], good.session, good.final, good.correct, good.anchor_correct)
    with pytest.raises(ValueError, match=r"stream holds \[0 3\]"):
        Rows(np.array([0, 3], np.int8), good.group, good.session, good.final, good.correct, good.anchor_correct)
    with pytest.raises(TypeError, match="correct is int64"):
        Rows(good.stream, good.group, good.session, good.final, np.array([0, 1]), good.anchor_correct)


def test_take():
    table = [(0, "a", "s", True, True, False), (1, "b", "t", False, False, True), (2, "", "u", True, True, True)]
    all_rows = rows(table)
    picked = all_rows.take([2, 0])
    assert len(picked) == 2
    assert picked.group.tolist() == ["", "a"] and picked.stream.tolist() == [2, 0]
    assert all_rows.take(np.array([False, True, False])).session.tolist() == ["t"]
    assert len(all_rows.take([])) == 0


# ---- group_relative


def test_group_relative_by_hand():
    scores = torch.tensor([1.0, 5.0, 0.0, 2.0, 3.0])
    group = ["a", "b", "a", "a", "b"]
    # a: mean (1 + 0 + 2) / 3 = 1; b: mean 4
    assert torch.equal(group_relative(scores, group, norm_by_std=False), torch.tensor([0.0, 1.0, -1.0, 1.0, -1.0]))
    # sample std: a: sqrt((0 + 1 + 1) / 2) = 1; b: sqrt((1 + 1) / 1) = 1.41421; epsilon .5 is added
    expected = torch.tensor([0.0, 1 / 1.91421, -1 / 1.5, 1 / 1.5, -1 / 1.91421])
    assert torch.allclose(group_relative(scores, group, norm_by_std=True, epsilon=0.5), expected)


def test_a_group_of_one_keeps_its_score_as_in_verl():
    # mean 0, std 1: (3 - 0) / (1 + 1)
    assert group_relative(torch.tensor([3.0]), ["a"], norm_by_std=True, epsilon=1.0).tolist() == [1.5]
    assert group_relative(torch.tensor([3.0]), ["a"], norm_by_std=False).tolist() == [3.0]


def test_equal_scores_give_no_advantage():
    assert group_relative(torch.ones(4), ["a"] * 4, norm_by_std=True).tolist() == [0.0] * 4


def test_group_relative_leaves_its_input_and_checks_it():
    scores = torch.tensor([1.0, 0.0])
    group_relative(scores, np.array(["a", "a"], dtype=object), norm_by_std=True)
    assert scores.tolist() == [1.0, 0.0]
    assert group_relative(torch.zeros(0), [], norm_by_std=True).shape == (0,)
    with pytest.raises(ValueError, match=r"\(2,\) and 1 group names"):
        group_relative(scores, ["a"], norm_by_std=True)
    with pytest.raises(TypeError, match="torch.int64"):
        group_relative(torch.tensor([1, 0]), ["a", "a"], norm_by_std=True)


# ---- correction_relative


def corrected(scores, broken, *, risk=1.0, norm_by_std=True, group=None, dtype=torch.float32):
    group = ["k"] * len(scores) if group is None else group
    values = torch.tensor(scores, dtype=dtype)
    return correction_relative(values, np.array(broken), group, lambda_risk=risk, norm_by_std=norm_by_std)


def test_correction_relative_by_hand():
    # z of 4, 2, 0, 2 (mean 2, std sqrt(8 / 3) = 1.63299): 1.22474, 0, -1.22474, 0.
    # z of broken 0, 0, 1, 1 (mean .5, std sqrt(1 / 3) = .57735): -.86603, -.86603, .86603, .86603.
    broken = [False, False, True, True]
    wanted = [1.22474 + 0.43301, 0.43301, -1.22474 - 0.43301, -0.43301]
    assert corrected([4.0, 2.0, 0.0, 2.0], broken, risk=0.5).tolist() == pytest.approx(wanted, abs=1e-5)
    # Without the std: 2, 0, -2, 0 and .5 * (.5, .5, -.5, -.5).
    plain = corrected([4.0, 2.0, 0.0, 2.0], broken, risk=0.5, norm_by_std=False)
    assert plain.tolist() == pytest.approx([2.25, 0.25, -2.25, -0.25])


def test_corrections_under_contexts_by_hand():
    scores, broken, context = [1.0, 0.0, 1.0, 0.0], [False, True, False, True], np.array([0, 0, 1, PLAIN])
    how = {"lambda_risk": 0.5, "norm_by_std": False}
    found = correction_relative(
        torch.tensor(scores), np.array(broken), ["k"] * 4, context=context, between=1.1, **how
    ).tolist()
    # As attempts (test_nudge.py): .4875, -.5125, .5375, -.5125; the penalty is .5 * (0, 1, 0, 1) less its mean.
    assert found == pytest.approx([0.4875 + 0.25, -0.5125 - 0.25, 0.5375 + 0.25, -0.5125 - 0.25])
    alone = correction_relative(torch.tensor([1.0]), np.array([False]), ["k"], context=np.array([1]), **how)
    assert alone.tolist() == [0.0]


# Largest absolute advantage of a group of 8 with the std of the raw scores under the shaped ones: 10.3, 23, 126, 8.8e5.
@pytest.mark.parametrize(
    ("scores", "right"),
    [
        pytest.param([0.5, 0.6] * 4, [False, True] * 4, id="test fractions"),
        pytest.param([0.48, 0.49, 0.5, 0.51, 0.52, 0.53, 0.47, 0.46], [i in (3, 4, 5) for i in range(8)], id="model"),
        pytest.param([0.02] + [0.0] * 7, [True] + [False] * 7, id="right, after an overlong penalty"),
        pytest.param([0.3] * 8, [True] * 4 + [False] * 4, id="equal scores, other verdicts"),
        pytest.param([1.0] + [0.999999] * 7, [True] + [False] * 7, id="hardly apart"),
    ],
)
def test_right_anchors_are_bounded_for_rewards_that_are_not_0_or_1(scores, right):
    bound = 7 / 8**0.5
    without, shaped = (corrected(scores, [not r for r in right], risk=risk) for risk in (0.0, 1.0))
    assert without.abs().max() <= bound * (1 + 1e-6) and shaped.abs().max() <= 2 * bound * (1 + 1e-6)
    gap = shaped[right].mean() - shaped[[not r for r in right]].mean()
    assert gap > without[right].mean() - without[[not r for r in right]].mean() + 1


@pytest.mark.parametrize("values", [(0.0, 1.0), (-1.0, 1.0), (0.0, 100.0)])
def test_a_verifier_of_two_values_has_right_anchors_weigh_1_plus_lambda_risk(values):
    scores, broken = [values[1], values[0], values[1], values[1]], [False, True, False, False]
    assert torch.allclose(corrected(scores, broken, risk=1.5), 2.5 * corrected(scores, broken, risk=0.0), atol=1e-4)


def test_a_correction_alone_in_its_group_has_no_advantage():
    assert corrected([1.0, 0.0, 1.0], [False, True, False], group=["a", "b", "b"]).tolist()[0] == 0.0
    assert corrected([5.0], [True], norm_by_std=False).tolist() == [0.0]


@given(data=st.data(), risk=st.sampled_from([0.0, 0.5, 1.0, 3.0]))
def test_the_bound_holds_for_any_finite_scores_and_verdicts(data, risk):
    n = data.draw(st.integers(1, 9))
    value, other = (data.draw(st.floats(-(2.0**99), 2.0**99, width=32)) for _ in range(2))
    # Also scores that differ in their last bit alone.
    pool = [value, float(np.nextafter(np.float32(value), np.float32(np.inf))), other]
    scores = data.draw(st.lists(st.sampled_from(pool), min_size=n, max_size=n))
    result = corrected(scores, data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), risk=risk)
    assert torch.isfinite(result).all()
    assert result.abs().max() <= (1 + risk) * (n - 1) / n**0.5 * (1 + 1e-6)


@given(data=st.data(), shift=st.integers(-64, 64), factor=st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_shifting_and_scaling_all_scores_changes_nothing(data, shift, factor):
    scores = data.draw(st.lists(st.integers(-8, 8), min_size=2, max_size=8))
    broken = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    moved = [(score + shift) * factor for score in scores]
    before, after = corrected(scores, broken, risk=2.0), corrected(moved, broken, risk=2.0)
    # epsilon is 1e-6 beside a std of at least .08.
    assert torch.allclose(before, after, atol=1e-4)


@given(data=st.data())
def test_lambda_risk_parts_right_from_broken_whatever_the_scores(data):
    scores = data.draw(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4))
    without, shaped = (corrected(scores, [True, True, False, False], risk=risk) for risk in (0.0, 1.0))
    # z of 1, 1, 0, 0 is .86603 and -.86603.
    assert (shaped - without).tolist() == pytest.approx([-0.86603, -0.86603, 0.86603, 0.86603], abs=1e-4)


# ---- stream_scales

SIZES = {"n_base_tokens": 60, "n_corr_tokens": 20, "n_base_seqs": 8, "n_corr_seqs": 2}


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        # T = 80: 80 / 60, .5 * 80 / 20
        ("token-mean", (4 / 3, 2.0)),
        # .5 * 60 / 20
        ("token-sum", (1.0, 1.5)),
        # .5 * 8 / 2
        ("seq-mean-token-sum", (1.0, 2.0)),
        ("seq-mean-token-sum-norm", (1.0, 2.0)),
        ("seq-mean-token-mean", (1.0, 2.0)),
    ],
)
def test_scales_by_hand(mode, expected):
    assert stream_scales(**SIZES, lambda_corr=0.5, loss_agg_mode=mode) == pytest.approx(expected)


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
def test_scales_at_the_ends(mode):
    no_corrections = SIZES | {"n_corr_tokens": 0, "n_corr_seqs": 0}
    assert stream_scales(**no_corrections, lambda_corr=0.5, loss_agg_mode=mode) == (1.0, 0.0)
    no_base = SIZES | {"n_base_tokens": 0, "n_base_seqs": 0}
    assert stream_scales(**no_base, lambda_corr=0.5, loss_agg_mode=mode) == (0.0, 0.5)
    assert stream_scales(**SIZES, lambda_corr=0.0, loss_agg_mode=mode)[1] == 0.0


FURTHER = {"n_further_tokens": 100, "n_further_seqs": 1}


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
def test_scales_with_further_attempts_by_hand(mode):
    """Of 300 tokens in 4 rows of attempts 100 in 1 are further ones; corrections have 100 tokens in 2 rows."""
    sizes = {"n_base_tokens": 300, "n_corr_tokens": 100, "n_base_seqs": 4, "n_corr_seqs": 2, **FURTHER}
    expected = {
        "token-mean": (400 / 300, 0.5 * 400 / 300 * 200 / 200),
        "token-sum": (200 / 300, 0.5 * 200 / 300 * 200 / 200),
    }.get(mode, (3 / 4, 0.5 * 3 / 4 * 3 / 3))
    assert stream_scales(**sizes, lambda_corr=0.5, loss_agg_mode=mode) == pytest.approx(expected)
    alone = stream_scales(**sizes | {"n_corr_tokens": 0, "n_corr_seqs": 0}, lambda_corr=0.5, loss_agg_mode=mode)
    assert alone == pytest.approx((1.0 if mode == "token-mean" else expected[0], 0.0))


def moved(share):
    """A prompt of 4 attempts and 4 slots of 4 sessions; `share` of the slots correct, with all rows alike."""
    corrections = [
        (CORRECTION, f"k{i}", f"k{i}{j}", True, j > 1, False) for i in range(int(4 * share)) for j in range(4)
    ]
    attempts = [(BASE, "a", f"a{j}", True, j % 2 > 0, False) for j in range(4 + 16 - len(corrections))]
    made = rows(attempts + corrections)
    further = np.arange(len(made)) >= 4
    return Rows(**{**vars(made), "further": further & (made.stream == BASE)})


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
def test_a_correction_counts_as_an_attempt_however_many_slots_have_moved_and_attempts_weigh_what_grpos_do(mode):
    def weights(share):
        """Sum of |A| over attempts, over what verl divides by; and |A| of a correction over that of an attempt."""
        made = moved(share)
        given, mask = rewards(made.correct.astype(float).tolist(), [1] * len(made), 1)
        how = HOW | {"norm_by_std": True, "loss_agg_mode": mode}
        size = two_stream(given, mask, made, **how)[:, 0].abs() / (len(made) if mode == "token-mean" else 4)
        attempts = made.stream == BASE
        # verl's std is that of a sample: more attempts are a little less alike.
        n = int(attempts.sum())
        own = size[attempts] / math.sqrt((n - 1) / n)
        return own.sum().item(), (size[~attempts].mean() / own.mean()).item()

    for share in (0.25, 0.5):
        assert weights(share) == pytest.approx(weights(1.0), rel=1e-5)


def test_a_further_attempt_is_a_row_of_its_prompts_group():
    """Two ordinary attempts, 1 and 0, and two further ones, 0 and 0: mean 1/4."""
    made = rows([(BASE, "a", f"a{i}", True, i == 0, False) for i in range(4)])
    made = Rows(**{**vars(made), "further": np.array([False, False, True, True])})
    given, mask = rewards([1.0, 0.0, 0.0, 0.0], [1] * 4, 1)
    out = two_stream(given, mask, made, **HOW | {"loss_agg_mode": "token-mean"})[:, 0]
    assert out.tolist() == pytest.approx([0.75, -0.25, -0.25, -0.25])


def test_an_unknown_mode_is_named():
    with pytest.raises(ValueError, match="loss_agg_mode = 'mean'.*token-mean, token-sum"):
        stream_scales(**SIZES, lambda_corr=0.5, loss_agg_mode="mean")


def test_term_scale_by_hand():
    table = rows([(BASE, "a", f"a{i}", True, True, False) for i in range(2)])
    table = Rows.joined([table, rows([(CORRECTION, "k", f"k{i}", True, True, False) for i in range(3)])])
    table = Rows.joined([table, rows([(PADDING, "p", "p", True, True, False)])])
    tokens = np.array([4, 6, 10, 10, 10, 7])
    # 10 of 40 tokens, 2 of 5 rows.
    assert term_scale(table, tokens, loss_agg_mode="token-sum") == 0.25
    assert {term_scale(table, tokens, loss_agg_mode=mode) for mode in SEQ_MEAN_MODES} == {0.4}
    assert term_scale(table, tokens, loss_agg_mode="token-mean") == 1.0
    # The second attempt is a further one: 4 of 40 tokens, 1 of 5 rows.
    further = Rows(**{**vars(table), "further": np.arange(6) == 1})
    assert term_scale(further, tokens, loss_agg_mode="token-sum") == 0.1
    assert {term_scale(further, tokens, loss_agg_mode=mode) for mode in SEQ_MEAN_MODES} == {0.2}
    assert term_scale(further, tokens, loss_agg_mode="token-mean") == 1.0
    for part in (slice(2), slice(2, 6)):
        index = np.arange(6)[part]
        assert {term_scale(table.take(index), tokens[part], loss_agg_mode=mode) for mode in LOSS_AGG_MODES} == {1.0}


# ---- two_stream_advantage, by hand

# A prompt with a right and a wrong attempt, and two corrections of each.
TABLE = [
    (BASE, "a", "a0", True, True, False),
    (BASE, "a", "a1", True, False, False),
    (CORRECTION, "a_0", "k0", True, True, True),
    (CORRECTION, "a_0", "k1", True, False, True),
    (CORRECTION, "a_1", "k2", True, True, False),
    (CORRECTION, "a_1", "k3", True, False, False),
]
TOKEN_REWARDS, MASK = rewards([1, 0, 1, 0, 1, 0], [2, 4, 1, 3, 2, 2], 4)


def advantages(**changes):
    return two_stream(TOKEN_REWARDS, MASK, rows(TABLE), **(HOW | changes))


def test_streams_risk_and_scales_by_hand():
    result = advantages(lambda_corr=0.5, lambda_risk=2.0)
    # Base: 1 and 0, mean .5. Corrections of the right attempt: 1 and 0 - 2 = -2, mean -.5: 1.5 and -1.5;
    # of the wrong one: 1 and 0, mean .5, no penalty. token-sum: Tb = 6, Tc = 8, corrections * .5 * 6 / 8 = .375.
    per_row = torch.tensor([0.5, -0.5, 1.5 * 0.375, -1.5 * 0.375, 0.5 * 0.375, -0.5 * 0.375])
    assert torch.allclose(result, per_row[:, None] * MASK)


def test_corrections_of_a_batch_have_the_advantage_of_their_contexts():
    table = Rows(**{**vars(rows(TABLE)), "context": np.array([PLAIN, PLAIN, PLAIN, PLAIN, 0, 1])})
    result = two_stream(TOKEN_REWARDS, MASK, table, **(HOW | {"lambda_risk": 0.0, "between": 1.4}))
    # Each context of the last group has one correction: 1.4 * .5. Corrections * 6 / 8.
    per_row = torch.tensor([0.5, -0.5, 0.5 * 0.75, -0.5 * 0.75, 0.7 * 0.75, -0.7 * 0.75])
    assert torch.allclose(result, per_row[:, None] * MASK)


def test_token_mean_counts_the_tokens_that_the_engine_divides_by():
    # The engine's 14 tokens, Tb = 6 and Tc = 8, though two corrections were rejected: factors 14 / 6 and 14 / 8. Those
    # of the 9 tokens that are left, 9 / 6 and 9 / 3, would shrink the attempts' gradient by 9 / 14.
    mask = MASK.clone()
    mask[3:5] = 0
    how = HOW | {"lambda_risk": 0.0, "loss_agg_mode": "token-mean"}
    result = two_stream(TOKEN_REWARDS, mask, rows(TABLE), **how, loss_tokens=MASK.sum(-1).numpy())
    expected = torch.tensor([0.5 * 14 / 6, -0.5 * 14 / 6, 0.5 * 14 / 8, 0.0, 0.0, -0.5 * 14 / 8])
    assert torch.allclose(result[:, 0], expected)
    with pytest.raises(ValueError, match=r"loss_tokens \(5,\)"):
        two_stream(TOKEN_REWARDS, mask, rows(TABLE), **how, loss_tokens=np.ones(5, dtype=int))


def test_token_mean_by_hand():
    result = advantages(lambda_risk=0.0, loss_agg_mode="token-mean", lambda_corr=2.0)
    # Tb = 6, Tc = 8: base * 14 / 6, corrections * 2 * 14 / 8
    assert torch.allclose(result[:, 0], torch.tensor([0.5, -0.5] * 3) * torch.tensor([14 / 6] * 2 + [3.5] * 4))


def test_seq_mean_by_hand():
    result = advantages(lambda_risk=0.0, loss_agg_mode="seq-mean-token-mean", lambda_corr=2.0)
    # Nb = 2, Nc = 4: corrections * 2 * 2 / 4
    assert torch.allclose(result[:, 0], torch.tensor([0.5, -0.5] * 3))


def test_norm_by_std_by_hand():
    result = advantages(norm_by_std=True, lambda_corr=8 / 6, epsilon=0.0)
    # (1 - .5) / sqrt(.5) = .70711; of a right anchor, with the penalty: .70711 - 1 * -.70711 = 1.41421.
    # Corrections: 8/6 * 6/8 = 1.
    wanted = torch.tensor([0.70711, -0.70711, 1.41421, -1.41421, 0.70711, -0.70711])
    assert torch.allclose(result[:, 0], wanted, atol=1e-5)


@pytest.mark.parametrize("norm_by_std", [True, False])
def test_a_binary_verifier_has_right_anchors_weigh_more_by_the_penalty(norm_by_std):
    without, shaped = (advantages(norm_by_std=norm_by_std, lambda_risk=risk) for risk in (0.0, 1.5))
    assert torch.allclose(shaped[2:4], 2.5 * without[2:4], atol=1e-5) and without[2:4].abs().sum() > 0
    assert torch.equal(shaped[:2], without[:2]) and torch.equal(shaped[4:], without[4:])


def test_lambda_zero_leaves_nothing_of_the_corrections():
    for mode in LOSS_AGG_MODES:
        result = advantages(lambda_corr=0.0, loss_agg_mode=mode)
        assert (result[2:] == 0).all()
        scale = 14 / 6 if mode == "token-mean" else 1.0
        alone = two_stream(TOKEN_REWARDS[:2], MASK[:2], rows(TABLE[:2]), **HOW)
        assert torch.allclose(result[:2], alone * scale)


def test_a_correction_group_is_its_anchor_even_if_names_collide():
    # A correction group called like the prompt does not mix with it.
    table = TABLE[:2] + [(CORRECTION, "a", "k0", True, True, False), (CORRECTION, "a", "k1", True, True, False)]
    result = two_stream(TOKEN_REWARDS[[0, 1, 2, 4]], MASK[[0, 1, 2, 4]], rows(table), **HOW)
    assert result[:, 0].tolist() == [0.5, -0.5, 0.0, 0.0]


def test_several_outputs_of_a_session_share_the_advantage_of_the_last():
    table = [
        (BASE, "a", "a0", False, False, False),
        (BASE, "a", "a1", True, False, False),
        (BASE, "a", "a0", True, True, False),
    ]
    values, mask = rewards([7, 0, 1], [3, 2, 1], 3)
    result = two_stream(values, mask, rows(table), **HOW)
    # The statistics are those of 0 and 1; the 7 of the first output of a0 enters nothing.
    assert result.tolist() == [[0.5, 0.5, 0.5], [-0.5, -0.5, 0.0], [0.5, 0.0, 0.0]]


def test_a_last_output_without_a_trained_token_gives_its_session_nothing():
    table = [
        (BASE, "a", "a0", False, False, False),
        (BASE, "a", "a0", True, True, False),
        (BASE, "a", "a1", True, False, False),
    ]
    values, mask = rewards([0, 1, 0], [2, 0, 2], 2)
    assert two_stream(values, mask, rows(table), **HOW).tolist() == [[0.0, 0.0], [0.0, 0.0], [-0.5, -0.5]]


def test_padding_gets_nothing_and_gives_nothing():
    # Here padding even has the group, the session and the tokens of a real row.
    table = [*TABLE, (PADDING, "a", "a0", True, True, True), (PADDING, "a_0", "k1", False, False, True)]
    pad = torch.tensor([0, 3])
    values, mask = torch.cat([TOKEN_REWARDS, TOKEN_REWARDS[pad]]), torch.cat([MASK, MASK[pad]])
    result = two_stream(values, mask, rows(table), **HOW)
    assert torch.equal(result[:6], advantages())
    assert (result[6:] == 0).all()


def test_only_padding_and_nothing_at_all():
    assert (two_stream(*rewards([1], [2], 2), rows([(2, "a", "s", True, True, True)]), **HOW) == 0).all()
    assert two_stream(torch.zeros(0, 3), torch.zeros(0, 3), rows([]), **HOW).shape == (0, 3)


def test_shapes_and_final_rows_are_checked():
    with pytest.raises(ValueError, match=r"\(6, 4\).*\(5, 4\)"):
        two_stream(TOKEN_REWARDS, MASK[:5], rows(TABLE), **HOW)
    with pytest.raises(ValueError, match="and 5 rows"):
        two_stream(TOKEN_REWARDS, MASK, rows(TABLE[:5]), **HOW)
    table = [(*line[:2], "twice" if i < 2 else line[2], *line[3:]) for i, line in enumerate(TABLE)]
    with pytest.raises(ValueError, match="session 'twice' has 2 final rows"):
        two_stream(TOKEN_REWARDS, MASK, rows(table), **HOW)
    table = [(*line[:3], i != 3, *line[4:]) for i, line in enumerate(TABLE)]
    with pytest.raises(ValueError, match="session 'k1' has 0 final rows"):
        two_stream(TOKEN_REWARDS, MASK, rows(table), **HOW)


def test_a_batch_of_several_blocks_is_multiplied_like_one(monkeypatch):
    monkeypatch.setattr(advantage, "_BLOCK", 8)  # two rows of four tokens
    assert torch.equal(advantages(), two_stream(TOKEN_REWARDS, MASK.float(), rows(TABLE), **HOW))
    per_row = torch.tensor([2.0, -0.5, 0.0, 1.0, -3.0])
    for mask in (MASK[:5], MASK[:5].bool(), MASK[:5].float()):
        expected = per_row.unsqueeze(-1) * mask
        result = advantage._on_tokens(per_row, mask)
        assert result.numpy().tobytes() == expected.numpy().tobytes() and result.dtype == expected.dtype
    assert advantage._on_tokens(per_row.double(), MASK[:5]).dtype == torch.float64
    assert advantage._on_tokens(per_row.to("meta"), MASK[:5].to("meta")).device.type == "meta"


def test_a_result_is_its_own_and_can_be_written_to():
    first = advantages()
    kept = first.clone()
    second = advantages()
    second += 1
    assert torch.equal(first, kept)


# ---- properties

WIDTH = 4


@st.composite
def drawn_batches(draw):
    """Rewards, mask and rows of some prompts, some of whose attempts are corrected; sessions of one or two outputs."""
    table, scores = [], []

    def session(stream, group, anchor_correct):
        name = f"s{len(table)}"
        correct = draw(st.booleans())
        if draw(st.integers(0, 4)) == 0:
            table.append((stream, group, name, False, False, anchor_correct))
            scores.append(draw(st.integers(-4, 4)) / 4)
        table.append((stream, group, name, True, correct, anchor_correct))
        # Quarters: their sums are exact, so the order of the rows shows in nothing but the last bit of the std.
        scores.append(draw(st.integers(-4, 4)) / 4)

    for prompt in range(draw(st.integers(1, 3))):
        for _ in range(draw(st.integers(1, 4))):
            session(BASE, f"u{prompt}", False)
        for anchor in range(draw(st.integers(0, 2))):
            anchor_correct = draw(st.booleans())
            for _ in range(draw(st.integers(1, 4))):
                session(CORRECTION, f"u{prompt}_{anchor}", anchor_correct)
    lengths = [draw(st.integers(1, WIDTH)) for _ in table]
    return (*rewards(scores, lengths, WIDTH), rows(table))


how = st.fixed_dictionaries(
    {
        "lambda_corr": st.sampled_from([0.0, 0.5, 1.0, 3.0]),
        "lambda_risk": st.sampled_from([0.0, 1.0, 2.5]),
        "norm_by_std": st.booleans(),
        "loss_agg_mode": MODES,
    }
)


@given(batch=drawn_batches(), how=how, data=st.data())
def test_the_order_of_rows_does_not_matter(batch, how, data):
    values, mask, all_rows = batch
    order = data.draw(st.permutations(range(len(all_rows))))
    shuffled = two_stream(values[order], mask[order], all_rows.take(order), **how)
    assert torch.allclose(shuffled, two_stream(values, mask, all_rows, **how)[order], rtol=1e-4, atol=1e-5)


@given(batch=drawn_batches(), how=how, data=st.data())
def test_padding_does_not_matter(batch, how, data):
    values, mask, all_rows = batch
    n = len(all_rows)
    index = list(range(n)) + data.draw(st.lists(st.integers(0, n - 1), max_size=4))
    order = data.draw(st.permutations(range(len(index))))
    index = [index[i] for i in order]
    is_pad = np.array(order) >= n
    padded = all_rows.take(index)
    padded = Rows(
        stream=np.where(is_pad, PADDING, padded.stream).astype(np.int8),
        group=padded.group,
        session=padded.session,
        final=padded.final,
        correct=padded.correct,
        anchor_correct=padded.anchor_correct,
    )
    result = two_stream(values[index], mask[index], padded, **how)
    assert (result[is_pad] == 0).all()
    alone = two_stream(values, mask, all_rows, **how)
    assert torch.allclose(result[~is_pad], alone[np.array(index)[~is_pad]], rtol=1e-4, atol=1e-5)


@given(batch=drawn_batches(), how=how, data=st.data())
def test_splitting_over_workers_changes_only_the_scales(batch, how, data):
    values, mask, all_rows = batch
    names = sorted(set(all_rows.group))
    side = {name: data.draw(st.booleans()) for name in names}
    whole = two_stream(values, mask, all_rows, **how)

    def scales(of):
        base, corr = of.stream == BASE, of.stream == CORRECTION
        tokens = mask.sum(-1).numpy() if of is all_rows else mask[part].sum(-1).numpy()
        return stream_scales(
            n_base_tokens=int(tokens[base].sum()),
            n_corr_tokens=int(tokens[corr].sum()),
            n_base_seqs=int(base.sum()),
            n_corr_seqs=int(corr.sum()),
            lambda_corr=how["lambda_corr"],
            loss_agg_mode=how["loss_agg_mode"],
        )

    for half in (True, False):
        part = np.flatnonzero([side[name] is half for name in all_rows.group])
        mine = all_rows.take(part)
        result = two_stream(values[part], mask[part], mine, **how)
        of_part, of_whole = scales(mine), scales(all_rows)
        for stream in (BASE, CORRECTION):
            own = mine.stream == stream
            # unscaled advantages are equal: whole / whole's scale = part / part's scale
            left, right = whole[part[own]] * of_part[stream], result[own] * of_whole[stream]
            assert torch.allclose(left, right, rtol=1e-4, atol=1e-4)


@given(batch=drawn_batches(), how=how)
def test_nothing_is_mutated_and_nothing_is_outside_the_mask(batch, how):
    values, mask, all_rows = batch
    before = values.clone(), mask.clone(), {name: array.copy() for name, array in vars(all_rows).items()}
    result = two_stream(values, mask, all_rows, **how)
    assert torch.equal(values, before[0]) and torch.equal(mask, before[1])
    assert all((getattr(all_rows, name) == array).all() for name, array in before[2].items())
    assert (result[mask == 0] == 0).all() and torch.isfinite(result).all()
    assert result.dtype == torch.float32 and not result.requires_grad


@given(batch=drawn_batches(), how=how, factor=st.sampled_from([2.0, 4.0]))
def test_corrections_weigh_in_proportion_to_lambda(batch, how, factor):
    values, mask, all_rows = batch
    once = two_stream(values, mask, all_rows, **how)
    more = two_stream(values, mask, all_rows, **(how | {"lambda_corr": how["lambda_corr"] * factor}))
    corrections = all_rows.stream == CORRECTION
    assert torch.equal(more[~corrections], once[~corrections])
    assert torch.allclose(more[corrections], once[corrections] * factor)


@given(batch=drawn_batches(), how=how)
def test_shaping_is_applied_once_and_to_broken_corrections_alone(batch, how):
    """Without the std it is r' = r - lambda_risk."""
    values, mask, all_rows = batch
    shaped = values.clone()
    broken = all_rows.final & (all_rows.stream == CORRECTION) & all_rows.anchor_correct & ~all_rows.correct
    shaped[torch.from_numpy(broken), 0] -= how["lambda_risk"]
    how = how | {"norm_by_std": False}
    by_hand = two_stream(shaped, mask, all_rows, **(how | {"lambda_risk": 0.0}))
    assert torch.allclose(two_stream(values, mask, all_rows, **how), by_hand, rtol=1e-4, atol=1e-5)
