"""The loss in verl's own engines: FSDP's and Megatron's way with micro-batches give one loss and one gradient.

``forward_backward_batch`` and what follows it are verl's, and Megatron's schedule is Megatron's own; what is replaced
is the model, by one of a few parameters, because Megatron's layers need a GPU. Not covered: parallel layouts (ranks are
played by the numbers that an engine would see), and verl's Megatron forward pass, which packs sequences.

Megatron-core lies beside the environment and not in it, where every Ray process would import it:
    pip install --no-deps --target "$(python -c 'import sys; print(sys.prefix)')/megatron" megatron-core==0.16.1
"""

import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_module
from torch.overrides import TorchFunctionMode
from transformers import Qwen3Config, Qwen3ForCausalLM
from verl.utils import tensordict_utils as tu
from verl.utils.metric import Metric
from verl.utils.torch_functional import entropy_from_logits
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.utils.padding import no_padding_2_padding

from tests.fast.integration.train.test_loss import (
    AUX,
    VOCABULARY,
    Policy,
    actor_config,
    gradients,
    micro_batch,
    padded_rows,
)
from tests.fast.integration.train.test_loss import with_fields as with_aux_fields
from verl_cipo.core.advantage import LOSS_AGG_MODES
from verl_cipo.core.aux_loss.transfer import transfer_weights
from verl_cipo.core.config import TransferConfig
from verl_cipo.integration.train.loss import METRIC, cipo_loss

MEGATRON = Path(sys.prefix) / "megatron"


@pytest.fixture(scope="module")
def actor_node():
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose(
            "ppo_trainer", overrides=["actor_rollout_ref.actor.use_dynamic_bsz=true"]
        ).actor_rollout_ref.actor


@pytest.fixture(scope="module")
def process_group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def megatron_parts(process_group):
    """verl's Megatron engine, Megatron's configuration of a model, and what it does with the gradients at the end."""
    if MEGATRON.is_dir():
        sys.path.append(str(MEGATRON))
    core = pytest.importorskip("megatron.core", reason="megatron-core is not installed, see the module's docstring")
    from megatron.core.distributed import finalize_model_grads
    from megatron.core.transformer import TransformerConfig
    from verl.workers.engine.megatron.transformer_impl import MegatronEngineWithLMHead

    core.parallel_state.initialize_model_parallel()
    yield MegatronEngineWithLMHead, TransformerConfig, finalize_model_grads
    core.parallel_state.destroy_model_parallel()
    if MEGATRON.is_dir():
        sys.path.remove(str(MEGATRON))


class OnTheCPU(TorchFunctionMode):
    """Megatron's schedule counts tokens on "cuda"."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def fsdp_engine(policy):
    class Engine(FSDPEngineWithLMHead):
        """verl's engine around a model that takes and gives what the loss reads."""

        def __init__(self):
            self.module = policy
            self.engine_config = SimpleNamespace(use_no_sync_for_gradient_accumulation=True)
            self.ulysses_sequence_parallel_size = 1
            self.ulysses_device_mesh = None
            self._autocast_dtype = torch.float32

        def prepare_model_inputs(self, micro_batch):
            return {"input_ids": micro_batch["input_ids"]}, {}

        def prepare_model_outputs(self, output, output_args, micro_batch, logits_processor_func):
            return output

    policy.forward = lambda input_ids, use_cache=False: model_output(policy, input_ids)
    return Engine()


def megatron_engine(policy, parts, *, per_token_loss=False):
    base, transformer_config, finalize_model_grads = parts
    config = transformer_config(
        num_layers=1, hidden_size=6, num_attention_heads=1, calculate_per_token_loss=per_token_loss
    )
    config.finalize_model_grads_func = finalize_model_grads

    def scale_gradients(factor):
        for parameter in policy.parameters():
            parameter.grad *= factor

    # What the schedule and the end of a mini-batch ask of a model.
    policy.config, policy.model_type = config, "encoder_or_decoder"
    policy.set_input_tensor = policy.finish_grad_sync = lambda *_, **__: None
    policy.scale_gradients = scale_gradients

    class Engine(base):
        """verl's engine with the forward pass of the tiny model."""

        def __init__(self):
            self.module = [policy]
            self.tf_config = config
            self.engine_config = SimpleNamespace(
                context_parallel_size=1,
                dynamic_context_parallel=False,
                pad_bshd_to_minibatch_max=False,
                use_remove_padding=True,
            )
            self.model_config = SimpleNamespace(mtp=SimpleNamespace(enable=False))

        def forward_step(self, batch_iter, model, logits_processor_func, postprocess_micro_batch_func):
            batch = next(batch_iter)
            return model_output(model, batch["input_ids"]), partial(postprocess_micro_batch_func, data=batch)

        def is_mp_src_rank_with_outputs(self):
            return True

        def _routed_num_tokens(self, data):
            # On the CPU verl's count is a view into the batch, which all_reduce would write to.
            return super()._routed_num_tokens(data).clone()

    return Engine()


def model_output(policy, input_ids):
    log_probs = Policy.forward(policy, input_ids)
    return {"log_probs": log_probs, "entropy": -log_probs}


@pytest.fixture(params=["fsdp", "megatron", "megatron per token"])
def engine_of(request, process_group):
    if request.param == "fsdp":
        return fsdp_engine
    parts = request.getfixturevalue("megatron_parts")
    return partial(megatron_engine, parts=parts, per_token_loss=request.param.endswith("token"))


def mini_batch(rows, index=slice(None), *, layout, size):
    """Rows as the worker hands them to its engine; ``size``: rows of a micro-batch, or "tokens" for verl's choice."""
    data = micro_batch(rows, index, layout=layout)
    if layout == "nested":
        data["loss_mask"] = data["response_mask"]
    tu.assign_non_tensor(
        data, use_dynamic_bsz=size == "tokens", max_token_len_per_gpu=12, micro_batch_size_per_gpu=size
    )
    return data


def all_rows(kind):
    rows = padded_rows()
    rows["ref_log_prob"] = rows["old_log_probs"] - 0.2
    rows["rollout_is_weights"] = 0.5 + torch.rand(
        rows["old_log_probs"].shape, generator=torch.Generator().manual_seed(2)
    )
    moved = transfer_weights(rows["trained"], torch.tensor([0.0, 0.0, 0.0, 0.0, 0.75, -0.5]), optimizer_steps=1)
    return with_aux_fields(rows, kind) | {"cipo_transfer_weights": moved}


def loss_of(node, kind, mode="token-mean"):
    """Everything that can be in it: clipped surrogate with importance weights, KL, entropy, what CIPO adds."""
    settings = {"use_kl_loss": True, "kl_loss_coef": 0.3, "entropy_coeff": 0.1, "loss_agg_mode": mode}
    transfer = TransferConfig(kind="inject" if kind == "nll" else "regress", coef=2.0, floor=-2.4)
    config = actor_config(node, loss_scale_factor=5, **settings)
    return partial(cipo_loss, config=config, aux=AUX[kind], transfer=transfer)


def train(engine, policy, data, loss_fn):
    """One mini-batch as verl trains it: gradient, summed loss, and the auxiliary loss as the trainer reports it."""
    policy.zero_grad()
    with OnTheCPU():
        output = engine.forward_backward_batch(data, loss_fn)
    reported = Metric.aggregate_dp([output["metrics"][METRIC]])
    return [parameter.grad.clone() for parameter in policy.parameters()], sum(output["loss"]), reported


def whole(policy, rows, loss_fn, index=slice(None), n_tokens=None, dp_size=1):
    """The loss of one batch in one piece, without an engine."""
    data = micro_batch(rows, index, n_tokens=n_tokens, dp_size=dp_size)
    loss, metrics = loss_fn(model_output=model_output(policy, data["input_ids"]), data=data)
    return gradients(policy, loss), loss.item(), metrics[METRIC].aggregate()


def assert_same(got, expected):
    for found, wanted in zip(got[0], expected[0], strict=True):
        torch.testing.assert_close(found, wanted)
    assert got[1:] == pytest.approx(expected[1:], rel=1e-5)


@pytest.mark.parametrize("layout", ["nested", "padded"])
@pytest.mark.parametrize("size", [1, 2, 6, "tokens"])
@pytest.mark.parametrize("kind", ["nll", "contrastive"])
def test_micro_batches_are_worth_one_whole_batch(engine_of, actor_node, kind, size, layout):
    policy, rows, loss_fn = Policy(), all_rows(kind), loss_of(actor_node, kind)
    expected = whole(policy, rows, loss_fn)
    assert_same(train(engine_of(policy), policy, mini_batch(rows, layout=layout, size=size), loss_fn), expected)


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
def test_every_aggregation_of_the_loss(engine_of, actor_node, mode):
    policy, rows, loss_fn = Policy(), all_rows("nll"), loss_of(actor_node, "nll", mode)
    expected = whole(policy, rows, loss_fn)
    assert_same(train(engine_of(policy), policy, mini_batch(rows, layout="nested", size=2), loss_fn), expected)


def test_ranks_are_worth_one_whole_batch(engine_of, actor_node, monkeypatch):
    """Two data-parallel ranks, one after the other; each is told the tokens of both.

    Gradients are averaged over the ranks; where Megatron divides them by the tokens of all ranks, they are added up.
    """
    policy, rows, loss_fn = Policy(), all_rows("nll"), loss_of(actor_node, "nll")
    expected = whole(policy, rows, loss_fn)
    tokens = int(rows["response_mask"].sum())
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, **_: tensor.fill_(tokens))
    parts = []
    for index in ([0, 3, 4], [1, 2, 5]):
        engine = engine_of(policy)
        engine.get_data_parallel_size = lambda: 2
        parts.append(train(engine, policy, mini_batch(rows, index, layout="nested", size=1), loss_fn))
    (first, loss, aux), (second, other_loss, other_aux) = parts
    share = 1 if getattr(engine_of, "keywords", {}).get("per_token_loss") else 2
    grads = [(a + b) / share for a, b in zip(first, second, strict=True)]
    assert_same((grads, (loss + other_loss) / 2, (aux + other_aux) / 2), expected)


def test_log_probabilities_are_computed_without_the_loss(engine_of, actor_node):
    """verl computes old and reference log-probabilities through the same path, without a loss function."""
    policy, rows = Policy(), all_rows("nll")
    data = mini_batch(rows, layout="nested", size="tokens")
    with OnTheCPU(), torch.no_grad():
        output = engine_of(policy).forward_backward_batch(data, None, forward_only=True)
    # The last one of a row means nothing: it depends on the row that follows.
    found = no_padding_2_padding(output["model_output"]["log_probs"], data)
    torch.testing.assert_close(found, no_padding_2_padding(Policy.forward(policy, data["input_ids"]), data))


@pytest.fixture(scope="module")
def qwen():
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=4,
        attn_implementation="sdpa",
    )
    return Qwen3ForCausalLM(config)


def qwen_engine(model):
    class Engine(FSDPEngineWithLMHead):
        """verl's FSDP engine with its own forward pass, around a model that is not sharded."""

        def __init__(self):
            self.module = model
            self.engine_config = SimpleNamespace(entropy_checkpointing=False, entropy_from_logits_with_chunking=False)
            self.ulysses_sequence_parallel_size = 1
            self.ulysses_device_mesh = None
            self.use_ulysses_sp = False
            self.pad_to_length = False
            self._autocast_dtype = torch.float32
            self.compute_entropy_from_logits = entropy_from_logits

    return Engine()


@pytest.mark.parametrize("size", [2, "tokens"])
def test_packed_sequences_are_worth_padded_ones(process_group, actor_node, qwen, size):
    """``use_remove_padding``: the rows of a micro-batch as one sequence, by verl's own packing and a real model."""
    rows, loss_fn = all_rows("nll"), loss_of(actor_node, "nll")
    results = []
    for packed in (False, True):
        data = mini_batch(rows, layout="nested", size=size)
        tu.assign_non_tensor(data, use_remove_padding=packed, temperature=1.0, calculate_entropy=True)
        results.append(train(qwen_engine(qwen), qwen, data, loss_fn))
    assert_same(*results)
    assert sum(grad.abs().sum() for grad in results[0][0]) > 0.1
