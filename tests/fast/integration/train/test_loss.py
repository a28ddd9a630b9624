"""The loss that the workers get: verl's own plus the auxiliary term, through verl's own packing and unpacking.

Covered is what reaches a loss function: nested micro-batches (TransferQueue) and padded ones (DataProto), with
log-probabilities packed as the engines return them. Not covered: the engines, and Megatron's scaling of the loss.
"""

import inspect
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf, open_dict
from tensordict import TensorDict
from torch.nested import as_nested_tensor
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, get_policy_loss_fn
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.metric import AggregationType
from verl.utils.py_functional import rename_dict
from verl.workers.engine.utils import prepare_micro_batches
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import left_right_2_no_padding

from verl_cipo.core.advantage import LOSS_AGG_MODES, two_stream_advantage
from verl_cipo.core.aux_loss.losses import aux_loss, aux_weights, partner_scores
from verl_cipo.core.config import AuxConfig, CIPOConfig
from verl_cipo.core.rows import BASE, CORRECTION, Rows
from verl_cipo.integration.train import loss as loss_module
from verl_cipo.integration.train.loss import METRIC, TERM_SCALE, build_loss, cipo_loss, normalizer, scales_terms
from verl_cipo.integration.train.loss import TERMS as TERMS_SCALED

VOCABULARY = 11
PROMPTS, RESPONSES = [3, 1, 4, 2, 2, 3], [4, 2, 1, 3, 5, 2]
# Rows 0-2 are attempts, row 3 is a verified correction, rows 4 and 5 are in the batch for the auxiliary loss alone.
POLICY_ROWS = torch.tensor([1, 1, 1, 1, 0, 0])
NLL_SIGN = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 0.0])
PAIR_SIGN = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, -1.0])
AUX = {kind: AuxConfig(kind=kind, coef=0.3, beta=1.5) for kind in ("nll", "contrastive")}


@pytest.fixture(scope="module")
def actor_node():
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2"])
    return config.actor_rollout_ref.actor


def actor_config(node, loss_mode="vanilla", **settings):
    root = node._get_root().copy()
    with open_dict(root):
        root.actor_rollout_ref.actor.update(settings)
        root.actor_rollout_ref.actor.policy_loss.update(
            loss_mode=loss_mode,
            dro_beta=0.1,
            rollout_correction={"loss_type": "ppo_clip", "rollout_is": "token", "rollout_is_threshold": 2.0},
        )
    return omega_conf_to_dataclass(root.actor_rollout_ref.actor)


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
@pytest.mark.parametrize(
    "loss_mode", ["vanilla", "gspo", "cispo", "gpg", "dppo_tv", "dppo_kl", "sapo", "geo_mean", "dro"]
)
def test_attempts_weigh_what_they_weigh_in_grpo_whatever_the_policy_loss_divides_by(actor_node, loss_mode, mode):
    """The gradient of 16 attempts by themselves, and with 16 corrections beside them."""
    actor = actor_config(actor_node, loss_mode, loss_agg_mode=mode)
    right = torch.tensor([1.0, 0, 0, 1, 1, 0, 1, 0] * 4)
    lengths = torch.tensor([3, 5, 2, 4, 5, 1, 2, 3] * 4)

    def gradient(n):
        rows = Rows(
            stream=np.repeat([BASE, CORRECTION], 16)[:n],
            group=np.array([f"g{i // 4}" for i in range(n)], dtype=object),
            session=np.array([f"s{i}" for i in range(n)], dtype=object),
            final=np.ones(n, dtype=bool),
            correct=right[:n].numpy() > 0,
            anchor_correct=np.zeros(n, dtype=bool),
        )
        mask = (torch.arange(5) < lengths[:n, None]).float()
        advantages = two_stream_advantage(
            mask * (right[:n] / lengths[:n]).unsqueeze(-1),
            mask,
            rows,
            lambda_corr=1.0,
            lambda_risk=0.0,
            norm_by_std=True,
            loss_agg_mode=divided_by,
        )
        actor.global_batch_info.update(
            dp_size=1, batch_num_tokens=int(mask.sum()), global_batch_size=16, loss_scale_factor=None
        )
        log_prob = torch.full(mask.shape, -1.0, requires_grad=True)
        # In micro-batches, as verl's engines go through it.
        for own in torch.arange(n).split(8):
            loss, _ = get_policy_loss_fn(loss_mode)(
                old_log_prob=log_prob[own].detach(),
                log_prob=log_prob[own],
                advantages=advantages[own],
                response_mask=mask[own].bool(),
                loss_agg_mode=mode,
                config=actor,
                rollout_is_weights=None,
            )
            loss.backward()
        return log_prob.grad[:16]

    divided_by = normalizer(OmegaConf.create({"loss_agg_mode": mode, "policy_loss": {"loss_mode": loss_mode}}))
    torch.testing.assert_close(gradient(32), gradient(16))


class Policy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.embed = torch.nn.Embedding(VOCABULARY, 6)
        self.head = torch.nn.Linear(6, VOCABULARY)

    def forward(self, input_ids):
        """Log-probability of each next token, packed like input_ids; the last of a row is of no meaning, as in verl."""
        packed = input_ids.values()
        chosen = torch.roll(packed, -1).unsqueeze(-1)
        values = torch.log_softmax(self.head(self.embed(packed)), dim=-1).gather(-1, chosen).squeeze(-1)
        return torch.nested.nested_tensor_from_jagged(values, input_ids.offsets())


def padded_rows():
    """The batch as a DataProto would hold it: prompts padded on the left, responses on the right."""
    generator = torch.Generator().manual_seed(5)
    n, width, length = len(PROMPTS), max(PROMPTS), max(RESPONSES)
    prompt_mask = torch.arange(width) >= width - torch.tensor(PROMPTS).unsqueeze(-1)
    response_tokens = (torch.arange(length) < torch.tensor(RESPONSES).unsqueeze(-1)).long()
    attention = torch.cat([prompt_mask.long(), response_tokens], dim=1)
    ids = torch.randint(VOCABULARY, (n, width + length), generator=generator) * attention
    mask = response_tokens * POLICY_ROWS.unsqueeze(-1)
    # A tool's token inside of row 3 and of row 4, which no loss trains.
    trained = response_tokens.clone()
    trained[3, 1] = trained[4, 2] = mask[3, 1] = 0
    return {
        "prompts": ids[:, :width],
        "responses": ids[:, width:],
        "input_ids": ids,
        "attention_mask": attention,
        "position_ids": (attention.cumsum(-1) - 1).clamp(min=0),
        "response_mask": mask,
        "advantages": torch.randn(n, length, generator=generator) * mask,
        "old_log_probs": (-2 + 0.1 * torch.randn(n, length, generator=generator)) * response_tokens,
        "trained": trained,
    }


def with_fields(rows, kind, scale=1.0):
    rows = dict(rows)
    sign = NLL_SIGN if kind == "nll" else PAIR_SIGN
    weights = aux_weights(rows.pop("trained"), sign, optimizer_steps=1)
    pair = torch.tensor([-1, -1, -1, -1, 0, 0])
    partner = (
        partner_scores(rows["old_log_probs"], weights, sign, pair) if kind == "contrastive" else torch.zeros(len(sign))
    )
    return rows | {"cipo_aux_weights": weights * scale, "cipo_aux_sign": sign, "cipo_aux_partner": partner}


def micro_batch(rows, index=slice(None), *, layout="nested", dp_size=1, n_tokens=None):
    """What a loss function gets as `data`: the rows at `index`, and the sizes of the whole mini-batch."""
    n_tokens = int(rows["response_mask"].sum()) if n_tokens is None else n_tokens
    rows = {key: value[index] for key, value in rows.items()}
    if layout == "padded":
        data = left_right_2_no_padding(TensorDict(rows, batch_size=len(rows["prompts"])))
    else:
        prompt_len = rows["attention_mask"][:, : rows["prompts"].shape[1]].sum(-1).tolist()
        response_len = rows["attention_mask"][:, rows["prompts"].shape[1] :].sum(-1).tolist()
        cut = {}
        for key, value in rows.items():
            if key == "prompts":
                cut[key] = [row[len(row) - n :] for row, n in zip(value, prompt_len, strict=True)]
            elif key in ("input_ids", "position_ids"):
                cut[key] = [row[mask.bool()] for row, mask in zip(value, rows["attention_mask"], strict=True)]
            elif value.dim() == 2 and key != "attention_mask":
                cut[key] = [row[:n] for row, n in zip(value, response_len, strict=True)]
        fields = {key: as_nested_tensor(value, layout=torch.jagged) for key, value in cut.items()}
        fields |= {key: value for key, value in rows.items() if value.dim() == 1}
        data = TensorDict(fields, batch_size=len(prompt_len))
    tu.assign_non_tensor(data, dp_size=dp_size, batch_num_tokens=n_tokens, global_batch_size=4)
    return data


def run(policy, loss_fn, data):
    torch.manual_seed(0)  # clip_cov draws
    loss, metrics = loss_fn(model_output={"log_probs": policy(data["input_ids"])}, data=data, dp_group=None)
    return loss, metrics


def gradients(policy, loss):
    return [g.clone() for g in torch.autograd.grad(loss, list(policy.parameters()))]


def term_by_hand(policy, rows, kind):
    """The auxiliary term on the padded batch, without verl's packing."""
    packed = policy(
        as_nested_tensor(
            [row[mask.bool()] for row, mask in zip(rows["input_ids"], rows["attention_mask"], strict=True)],
            layout=torch.jagged,
        )
    )
    log_prob = torch.zeros(rows["responses"].shape)
    for i, values in enumerate(packed.unbind()):
        log_prob[i, : RESPONSES[i]] = values[PROMPTS[i] - 1 : -1]
    fields = [rows[f"cipo_aux_{name}"] for name in ("weights", "sign", "partner")]
    return aux_loss(log_prob, *fields, kind=kind, beta=AUX[kind].beta)


@pytest.mark.parametrize("layout", ["nested", "padded"])
@pytest.mark.parametrize("kind", ["nll", "contrastive"])
@pytest.mark.parametrize("loss_mode", sorted(POLICY_LOSS_REGISTRY))
def test_loss_and_gradient_are_the_sum(actor_node, loss_mode, kind, layout):
    policy, rows = Policy(), with_fields(padded_rows(), kind)
    config = actor_config(actor_node, loss_mode)
    loss, metrics = run(policy, partial(cipo_loss, config=config, aux=AUX[kind]), micro_batch(rows, layout=layout))
    own, own_metrics = run(policy, partial(ppo_loss, config), micro_batch(rows, layout=layout))
    term, value = term_by_hand(policy, rows, kind)

    torch.testing.assert_close(loss, own + 0.3 * term)
    assert term.item() > 0.1
    expected = zip(gradients(policy, own), gradients(policy, term), strict=True)
    for got, (base, extra) in zip(gradients(policy, loss), expected, strict=True):
        torch.testing.assert_close(got, base + 0.3 * extra)
    assert metrics.pop(METRIC).aggregate() == pytest.approx(value.item(), rel=1e-5)
    assert metrics.keys() == own_metrics.keys()
    assert all(np.all(_plain(metrics[key]) == _plain(own_metrics[key])) for key in metrics)


def _plain(metric):
    return metric.aggregate() if hasattr(metric, "aggregate") else metric


@pytest.mark.parametrize("loss_mode", sorted(POLICY_LOSS_REGISTRY))
def test_the_policy_loss_sees_nothing_of_auxiliary_rows(actor_node, loss_mode):
    """Loss and gradient of verl's own are those without the rows. geo_mean divides by all rows, padding included."""
    policy, rows = Policy(), with_fields(padded_rows(), "nll")
    for mode in LOSS_AGG_MODES:
        # Without the factor, seq-mean-token-sum-norm divides by the width of the micro-batch.
        loss_fn = partial(ppo_loss, actor_config(actor_node, loss_mode, loss_agg_mode=mode, loss_scale_factor=5))
        n_tokens = int(rows["response_mask"].sum())
        data = [micro_batch(rows, index, n_tokens=n_tokens) for index in (slice(None), slice(4))]
        (loss, _), (alone, _) = (run(policy, loss_fn, part) for part in data)
        share = 6 / 4 if loss_mode == "geo_mean" else 1
        torch.testing.assert_close(loss * share, alone)
        for got, expected in zip(gradients(policy, loss), gradients(policy, alone), strict=True):
            torch.testing.assert_close(got * share, expected)


@pytest.mark.parametrize("loss_mode", sorted(POLICY_LOSS_REGISTRY))
def test_a_micro_batch_of_auxiliary_rows_alone(actor_node, loss_mode):
    policy, rows = Policy(), with_fields(padded_rows(), "contrastive")
    config = actor_config(actor_node, loss_mode)
    data = micro_batch(rows, slice(4, 6), n_tokens=9)
    if loss_mode == "bypass_mode":
        # verl's own padding rows meet the same check.
        with pytest.raises(ValueError, match="at least one valid token"):
            run(policy, partial(ppo_loss, config), data)
        return
    loss, _ = run(policy, partial(cipo_loss, config=config, aux=AUX["contrastive"]), data)
    term, _ = term_by_hand(policy, rows, "contrastive")
    torch.testing.assert_close(loss, 0.3 * term)
    for got, expected in zip(gradients(policy, loss), gradients(policy, term), strict=True):
        torch.testing.assert_close(got, 0.3 * expected)


@pytest.mark.parametrize("kind", ["nll", "contrastive"])
@pytest.mark.parametrize("split", [[[0, 1, 2, 3, 4, 5]], [[0, 1, 4], [2, 3, 5]], [[5], [3, 0], [1, 4], [2]]])
@pytest.mark.parametrize("dp_size", [1, 2])
def test_micro_batches_and_ranks_add_up(actor_node, kind, split, dp_size):
    """Each part is a micro-batch of one of the ranks; verl adds up what a rank has and averages over the ranks."""
    policy, rows = Policy(), with_fields(padded_rows(), kind)
    config = actor_config(actor_node)
    n_tokens = int(rows["response_mask"].sum())

    def parts(index, dp):
        data = micro_batch(rows, index, dp_size=dp, n_tokens=n_tokens)
        return run(policy, partial(cipo_loss, config=config, aux=AUX[kind]), data)

    whole, whole_metrics = parts([0, 1, 2, 3, 4, 5], 1)
    expected = gradients(policy, whole)
    total = [torch.zeros_like(g) for g in expected]
    reported = 0.0
    for index in split:
        loss, metrics = parts(index, dp_size)
        total = [t + g / dp_size for t, g in zip(total, gradients(policy, loss), strict=True)]
        assert metrics[METRIC].aggregation is AggregationType.SUM
        reported += metrics[METRIC].aggregate() / dp_size
    for got, want in zip(total, expected, strict=True):
        torch.testing.assert_close(got, want)
    assert reported == pytest.approx(whole_metrics[METRIC].aggregate(), rel=1e-5)


@pytest.mark.parametrize("layout", ["nested", "padded"])
def test_verls_dynamic_micro_batches_add_up(actor_node, layout):
    """Micro-batches by token count, cut by verl itself: the fields travel with their rows."""
    policy, rows = Policy(), with_fields(padded_rows(), "contrastive")
    loss_fn = partial(cipo_loss, config=actor_config(actor_node), aux=AUX["contrastive"])
    whole, _ = run(policy, loss_fn, micro_batch(rows, layout=layout))
    data = micro_batch(rows, layout=layout)
    tu.assign_non_tensor(data, use_dynamic_bsz=True, max_token_len_per_gpu=12, sp_size=1)
    parts, _ = prepare_micro_batches(data)
    assert len(parts) > 2
    losses = [run(policy, loss_fn, part)[0] for part in parts]
    torch.testing.assert_close(sum(losses), whole)
    for got, want in zip(gradients(policy, sum(losses)), gradients(policy, whole), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("kind", ["nll", "contrastive"])
@pytest.mark.parametrize("off", ["coef", "weights"])
def test_without_coefficient_or_weights_it_is_verls_loss_bit_for_bit(actor_node, kind, off):
    policy = Policy()
    rows = with_fields(padded_rows(), kind, scale=0.0 if off == "weights" else 1.0)
    aux = AuxConfig(kind=kind, coef=0.0 if off == "coef" else 0.3)
    config = actor_config(actor_node)
    loss, metrics = run(policy, partial(cipo_loss, config=config, aux=aux), micro_batch(rows))
    own, _ = run(policy, partial(ppo_loss, config), micro_batch(rows))
    assert torch.equal(loss, own)
    assert all(map(torch.equal, gradients(policy, loss), gradients(policy, own)))
    assert METRIC not in metrics if off == "coef" else metrics[METRIC].aggregate() == 0


def test_with_entropy_and_kl_terms(actor_node):
    policy, rows = Policy(), with_fields(padded_rows(), "nll")
    rows["ref_log_prob"] = rows["old_log_probs"] - 0.2
    config = actor_config(actor_node, use_kl_loss=True, entropy_coeff=0.1)

    def call(function):
        data = micro_batch(rows)
        log_probs = policy(data["input_ids"])
        return function(model_output={"log_probs": log_probs, "entropy": -log_probs}, data=data)

    loss, metrics = call(partial(cipo_loss, config=config, aux=AUX["nll"]))
    own, _ = call(partial(ppo_loss, config))
    torch.testing.assert_close(loss, own + 0.3 * term_by_hand(policy, rows, "nll")[0])
    assert {"kl_loss", "actor/entropy_loss", "actor/pg_loss", METRIC} <= metrics.keys()


def test_a_batch_without_the_fields_is_an_error(actor_node):
    rows = with_fields(padded_rows(), "nll")
    del rows["cipo_aux_partner"]
    with pytest.raises(KeyError, match="cipo_aux_partner"):
        run(Policy(), partial(cipo_loss, config=actor_config(actor_node), aux=AUX["nll"]), micro_batch(rows))


def test_build_loss_is_configured_as_the_workers_own_and_travels(actor_node):
    loss_fn = pickle.loads(pickle.dumps(build_loss(actor_node, AUX["nll"])))
    assert loss_fn.func is cipo_loss
    assert loss_fn.keywords["aux"] == AUX["nll"]
    assert loss_fn.keywords["config"] == omega_conf_to_dataclass(actor_node)
    policy, rows = Policy(), with_fields(padded_rows(), "nll")
    loss, metrics = run(policy, loss_fn, micro_batch(rows))
    own, _ = run(policy, partial(ppo_loss, actor_config(actor_node)), micro_batch(rows))
    torch.testing.assert_close(loss, own + 0.3 * term_by_hand(policy, rows, "nll")[0])
    assert "actor/cipo_aux_loss" in rename_dict(metrics, "actor/")


def test_the_seam_is_there():
    """The workers take a loss by RPC and call it by these names; verl's own is made from the actor's config alone."""
    assert list(inspect.signature(ActorRolloutRefWorker.set_loss_fn).parameters) == ["self", "loss_fn"]
    assert list(inspect.signature(TrainingWorker.set_loss_fn).parameters) == ["self", "loss_fn"]
    assert "partial(ppo_loss, config=actor_config)" in inspect.getsource(ActorRolloutRefWorker.init_model)
    assert list(inspect.signature(ppo_loss).parameters) == ["config", "model_output", "data", "dp_group"]


TERMS = {"use_kl_loss": True, "kl_loss_coef": 0.2, "entropy_coeff": 0.0}


@pytest.mark.parametrize("layout", ["nested", "padded"])
@pytest.mark.parametrize("mode", [mode for mode in LOSS_AGG_MODES if mode != "token-mean"])
def test_a_term_weighs_what_it_weighs_in_grpo(actor_node, mode, layout):
    """Rows that are there twice, as attempts and as corrections: with the factor 1 / 2 the KL term is that of once."""
    policy, rows = Policy(), padded_rows()
    del rows["trained"]
    rows["ref_log_prob"] = rows["old_log_probs"] - 0.3
    rows["advantages"] = torch.zeros_like(rows["advantages"])
    twice = {key: torch.cat([value, value]) for key, value in rows.items()}
    loss_fn = partial(
        cipo_loss,
        config=actor_config(actor_node, loss_agg_mode=mode, loss_scale_factor=5, **TERMS),
        aux=AuxConfig(coef=0.0),
    )
    once = run(policy, loss_fn, micro_batch(rows, layout=layout))[0]
    data = micro_batch(twice, layout=layout)
    grown = run(policy, loss_fn, data)[0]
    tu.assign_non_tensor(data, **{TERM_SCALE: 0.5})
    scaled = run(policy, loss_fn, data)[0]
    torch.testing.assert_close(grown, 2 * once)
    torch.testing.assert_close(scaled, once)
    for got, expected in zip(gradients(policy, scaled), gradients(policy, once), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_the_factor_scales_both_coefficients_and_nothing_else(actor_node, scale):
    settings = {"use_kl_loss": True, "kl_loss_coef": 0.2, "entropy_coeff": 0.1, "clip_ratio": 0.3}
    config = actor_config(actor_node, **settings)
    scaled = loss_module._scaled(config, scale)
    assert (scaled.kl_loss_coef, scaled.entropy_coeff) == (pytest.approx(0.2 * scale), pytest.approx(0.1 * scale))
    assert (config.kl_loss_coef, config.entropy_coeff) == (0.2, 0.1), "the worker's own config"
    same = {name: value for name, value in dict(scaled).items() if name not in TERMS_SCALED}
    assert same == {name: value for name, value in dict(config).items() if name not in TERMS_SCALED}


@pytest.mark.parametrize(
    ("options", "scales"),
    [
        (["use_kl_loss=true", "kl_loss_coef=0.01", "loss_agg_mode=seq-mean-token-mean"], True),
        (["entropy_coeff=0.01", "loss_agg_mode=token-sum"], True),
        (["use_kl_loss=true", "kl_loss_coef=0.01", "loss_agg_mode=token-mean"], False),
        (["kl_loss_coef=0.01", "loss_agg_mode=token-sum"], False),
        (["loss_agg_mode=token-sum"], False),
    ],
)
def test_where_a_term_grows_with_the_corrections(options, scales):
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=[f"actor_rollout_ref.actor.{option}" for option in options])
    assert scales_terms(config, CIPOConfig(preset="stream")) is scales
    assert not scales_terms(config, CIPOConfig(preset="stream", lambda_corr=0))
    assert scales_terms(config, CIPOConfig(preset="stream", lambda_corr=0, budget="auto")) is scales, (
        "further attempts are rows, too"
    )
    assert not scales_terms(config, CIPOConfig(preset="stream", replay_fraction=0))
