"""Two-stream advantages against verl's own GRPO and loss aggregation: equal bit for bit without corrections."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from verl.trainer.ppo.core_algos import agg_loss, compute_grpo_outcome_advantage

from verl_cipo.core.advantage import (
    BASE,
    CORRECTION,
    LOSS_AGG_MODES,
    PADDING,
    Rows,
    group_relative,
    two_stream_advantage,
)


def grpo(scores, group, norm_by_std):
    """verl's advantages of one-token responses, (N,)."""
    return compute_grpo_outcome_advantage(
        scores[:, None].clone(), torch.ones(len(scores), 1), group, norm_adv_by_std_in_grpo=norm_by_std
    )[0][:, 0]


def bits(tensor):
    return tensor.contiguous().numpy().tobytes()


def base_rows(group):
    n = len(group)
    return Rows(
        stream=np.zeros(n, np.int8),
        group=group,
        session=np.array([f"s{i}" for i in range(n)], dtype=object),
        final=np.ones(n, bool),
        correct=np.zeros(n, bool),
        anchor_correct=np.zeros(n, bool),
    )


sizes = st.lists(st.integers(1, 9), min_size=1, max_size=6)
seeds = st.integers(0, 2**31 - 1)


def drawn(sizes, seed, kind):
    """Groups of the given sizes in random order, with 0/1 or real scores."""
    generator = torch.Generator().manual_seed(seed)
    group = np.repeat(np.array([f"u{i}" for i in range(len(sizes))], dtype=object), sizes)
    group = group[torch.randperm(len(group), generator=generator).numpy()]
    scores = torch.rand(len(group), generator=generator)
    return ((scores < 0.5).float() if kind == "0/1" else scores * 3 - 1), group


@given(sizes=sizes, seed=seeds, kind=st.sampled_from(["0/1", "real"]), norm_by_std=st.booleans())
def test_group_relative_equals_verl_bit_for_bit(sizes, seed, kind, norm_by_std):
    scores, group = drawn(sizes, seed, kind)
    ours = group_relative(scores, group, norm_by_std=norm_by_std)
    assert bits(ours) == bits(grpo(scores, group, norm_by_std))


@given(
    sizes=sizes,
    seed=seeds,
    norm_by_std=st.booleans(),
    mode=st.sampled_from(LOSS_AGG_MODES),
    dtype=st.sampled_from([torch.int64, torch.float32]),
)
def test_without_corrections_equal_to_verl_bit_for_bit(sizes, seed, norm_by_std, mode, dtype):
    scores, group = drawn(sizes, seed, "real")
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 6, (len(scores), 1), generator=generator)
    mask = (torch.arange(5) < lengths).to(dtype)
    rewards = torch.zeros(len(scores), 5).scatter_(1, lengths - 1, scores[:, None])
    theirs, _ = compute_grpo_outcome_advantage(rewards.clone(), mask, group, norm_adv_by_std_in_grpo=norm_by_std)
    ours = two_stream_advantage(
        rewards,
        mask,
        base_rows(group),
        lambda_corr=1.0,
        lambda_risk=1.0,
        norm_by_std=norm_by_std,
        loss_agg_mode=mode,
    )
    assert bits(ours) == bits(theirs) and ours.dtype == theirs.dtype


@given(slots=st.lists(st.integers(0, 3), min_size=1, max_size=6), seed=seeds, norm_by_std=st.booleans())
def test_when_all_slots_are_further_attempts_equal_to_verl_bit_for_bit(slots, seed, norm_by_std):
    """Groups of 4 attempts and 4 more a slot. Where the divisor stays GRPO's, the larger sum is scaled back."""
    scores, group = drawn([4 * (1 + moved) for moved in slots], seed, "0/1")
    mask, seen = torch.ones(len(scores), 1), {}
    further = np.array([seen.setdefault(uid, []).append(0) or len(seen[uid]) > 4 for uid in group])
    rows = Rows(**{**vars(base_rows(group)), "further": further})
    theirs = grpo(scores, group, norm_by_std)
    for mode in LOSS_AGG_MODES:
        how = {"lambda_corr": 1.0, "lambda_risk": 1.0, "norm_by_std": norm_by_std, "loss_agg_mode": mode}
        ours = two_stream_advantage(scores[:, None], mask, rows, **how)[:, 0]
        if mode == "token-mean" or not any(slots):
            assert bits(ours) == bits(theirs)
        else:
            assert ours.tolist() == pytest.approx((theirs * 4 * len(slots) / len(group)).tolist(), rel=1e-5, abs=1e-7)


@given(seed=seeds, norm_by_std=st.booleans())
def test_several_outputs_of_a_session_equal_to_verl_bit_for_bit(seed, norm_by_std):
    from verl import DataProto
    from verl.trainer.ppo.core_algos import AdvantageEstimator
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

    rng = np.random.default_rng(seed)
    keys = [f"u{u}_{s}_{i}" for u in range(3) for s in range(4) for i in range(rng.integers(1, 4))]
    keys = [keys[i] for i in rng.permutation(len(keys))]
    n = len(keys)
    mask = torch.from_numpy((rng.random((n, 4)) < 0.6).astype(np.int64))
    rewards = torch.from_numpy(rng.random((n, 4), dtype=np.float32)) * mask
    group = np.array([key.split("_")[0] for key in keys], dtype=object)
    data = DataProto.from_dict(
        tensors={"token_level_rewards": rewards.clone(), "response_mask": mask}, non_tensors={"uid": group}
    )
    theirs = compute_advantage_for_multi_trajectories(
        data,
        batch_keys=keys,
        adv_estimator=AdvantageEstimator.GRPO,
        norm_adv_by_std_in_grpo=norm_by_std,
    ).batch["advantages"]

    session = np.array([key.rsplit("_", 1)[0] for key in keys], dtype=object)
    number = np.array([int(key.rsplit("_", 1)[1]) for key in keys])
    final = np.array([number[i] == number[session == session[i]].max() for i in range(n)])
    rows = Rows(np.zeros(n, np.int8), group, session, final, np.zeros(n, bool), np.zeros(n, bool))
    ours = two_stream_advantage(
        rewards, mask, rows, lambda_corr=1.0, lambda_risk=1.0, norm_by_std=norm_by_std, loss_agg_mode="token-mean"
    )
    # Where the mask is 0 the sign of the zero may differ; no loss reads it.
    assert bits(ours[mask == 1]) == bits(theirs[mask == 1]) and torch.equal(ours, theirs)


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
@pytest.mark.parametrize("lambda_corr", [0.0, 0.7, 1.0])
def test_the_joint_loss_is_base_plus_lambda_times_correction(mode, lambda_corr):
    """J = J_rlvr + lambda * J_corr through verl's agg_loss, in value and gradient, with padding and one mini-batch."""
    generator = torch.Generator().manual_seed(3)
    n_base, n_corr, n_pad, width = 6, 9, 1, 7
    n = n_base + n_corr + n_pad
    mask = (torch.arange(width) < torch.randint(1, width + 1, (n, 1), generator=generator)).float()
    # verl's padding rows are masked out.
    mask[-n_pad:] = 0
    scores = (torch.rand(n, generator=generator) < 0.5).float()
    rewards = torch.zeros(n, width)
    rewards[:, 0] = scores
    stream = np.repeat([BASE, CORRECTION, PADDING], [n_base, n_corr, n_pad]).astype(np.int8)
    group = np.array([f"g{i // 3}" for i in range(n)], dtype=object)
    session = np.array([f"s{i}" for i in range(n)], dtype=object)
    correct = (scores > 0.5).numpy()
    anchor_correct = (stream == CORRECTION) & (np.arange(n) < 9)
    rows = Rows(stream, group, session, np.ones(n, bool), correct, anchor_correct)
    how = {"lambda_risk": 1.0, "norm_by_std": True, "loss_agg_mode": mode}
    log_prob = torch.randn(n, width, generator=generator)

    def loss(advantages, part, global_batch_size):
        leaf = log_prob[part].clone().requires_grad_()
        value = agg_loss(
            -advantages[part] * leaf, mask[part], mode, batch_num_tokens=mask[part].sum(),
            global_batch_size=global_batch_size, loss_scale_factor=width,
        )  # fmt: skip
        value.backward()
        return value.detach(), leaf.grad

    everything = slice(0, n)
    base, corr = slice(0, n_base), slice(n_base, n_base + n_corr)
    # GRPO's mini-batch size stays what it is without corrections.
    joint, joint_grad = loss(
        two_stream_advantage(rewards, mask, rows, lambda_corr=lambda_corr, **how), everything, n_base
    )
    alone, corrections = torch.zeros(n, width), torch.zeros(n, width)
    grpo_rows = rows.take(range(n_base))
    alone[base] = two_stream_advantage(rewards[base], mask[base], grpo_rows, lambda_corr=1.0, **how)
    # Of 1 and 0, lambda_risk = 1 makes 1 and -1: twice the advantage over the same std.
    shaped = grpo(scores[corr], group[corr], True) * torch.from_numpy(1 + anchor_correct[corr])
    corrections[corr] = shaped[:, None] * mask[corr]
    j_base, base_grad = loss(alone, base, n_base)
    j_corr, corr_grad = loss(corrections, corr, n_corr)
    if mode == "token-sum":
        # A sum over tokens has no size of its own: the corrections count as many tokens as the base stream has.
        ratio = mask[base].sum() / mask[corr].sum()
        j_corr, corr_grad = j_corr * ratio, corr_grad * ratio
    assert torch.allclose(joint, j_base + lambda_corr * j_corr, rtol=1e-5, atol=1e-6)
    assert torch.allclose(joint_grad[base], base_grad, rtol=1e-5, atol=1e-7)
    assert torch.allclose(joint_grad[corr], lambda_corr * corr_grad, rtol=1e-5, atol=1e-7)
    assert (joint_grad[-n_pad:] == 0).all()
