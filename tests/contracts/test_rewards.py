"""How verl calls a verifier and what it makes of the result; when a session is scored."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict

from tests.contracts.seams import check_accepts, load, seam

NAIVE = "verl.experimental.reward_loop.reward_manager.naive:NaiveRewardManager"
VERIFIERS = ("verl_cipo/rewards/math.py", "verl_cipo/rewards/code.py", "verl_cipo/rewards/judge.py")


def judged(compute_score, extra_info=None) -> dict:
    """The result of verl's default reward manager for the response "AB"."""
    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: "".join(map(chr, ids)))
    data = load("verl:DataProto")(
        batch=TensorDict(
            {"responses": torch.tensor([[65, 66, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 0]])}, batch_size=[1]
        ),
        non_tensor_batch={
            "data_source": np.array(["gsm8k"], dtype=object),
            "reward_model": np.array([{"ground_truth": "4", "style": "rule"}], dtype=object),
            "extra_info": np.array([extra_info or {}], dtype=object),
        },
    )

    async def run():
        manager = load(NAIVE)(config=OmegaConf.create({}), tokenizer=tokenizer, compute_score=compute_score)
        return await manager.run_single(data)

    return asyncio.run(run())


@seam("NaiveRewardManager.run_single, the call of a verifier", *VERIFIERS)
def test_a_verifier_is_called_with_these_four_keywords():
    seen = {}

    def score(**arguments):
        seen.update(arguments)
        return 0.0

    judged(score, {"index": 3})
    assert set(seen) == {"data_source", "solution_str", "ground_truth", "extra_info"}, f"verl gives {sorted(seen)}"
    assert (seen["data_source"], seen["solution_str"], seen["ground_truth"]) == ("gsm8k", "AB", "4")
    assert seen["extra_info"]["index"] == 3


@seam("NaiveRewardManager.run_single, a verifier that returns a dict", "verl_cipo/rewards/outcome.py", *VERIFIERS)
def test_a_verifiers_fields_are_kept_beside_its_score():
    found = judged(lambda **_: {"score": 1.0, "acc": True, "pred": "4"})
    assert found == {"reward_score": 1.0, "reward_extra_info": {"score": 1.0, "acc": True, "pred": "4"}}


@seam("NaiveRewardManager.run_single, a verifier that returns a float", "verl_cipo/integration/outcome.py")
def test_a_bare_score_is_filed_as_acc_without_a_score_beside_it():
    assert judged(lambda **_: 0.5) == {"reward_score": 0.5, "reward_extra_info": {"acc": 0.5}}


@seam("NaiveRewardManager.run_single, a verifier that raises", "verl_cipo/integration/verifying.py")
def test_a_verifiers_exception_is_not_turned_into_a_score():
    def score(**_):
        raise RuntimeError("the sandbox is away")

    with pytest.raises(RuntimeError, match="the sandbox is away"):
        judged(score)


@seam("reward.get_custom_reward_fn", "verl_cipo/integration/dry_run.py", "verl_cipo/rewards/__init__.py")
def test_a_verifier_is_named_by_package_and_function():
    section = {"path": "pkg://verl_cipo.rewards.math", "name": "compute_score", "reward_kwargs": {"timeout_s": 1.0}}
    config = OmegaConf.create({"reward": {"custom_reward_function": section}})
    found = load("verl.trainer.ppo.reward:get_custom_reward_fn")(config)
    from verl_cipo.rewards.math import compute_score

    assert found.args == (compute_score, {"timeout_s": 1.0}), "path, name or reward_kwargs are read in another way"


@seam("AgentLoopWorker._compute_score", "verl_cipo/integration/verifying.py", "verl_cipo/integration/rollouts.py")
@pytest.mark.parametrize(("scored", "calls"), [(None, 1), (0.25, 0)])
def test_only_an_output_without_a_reward_is_scored(scored, calls):
    """A failed verification is asked for again by taking the reward away; what its loop has scored stays."""
    seen = []

    async def score(data):
        seen.append(data)
        return {"reward_score": 1.0, "reward_extra_info": {"acc": True}}

    worker = SimpleNamespace(
        reward_loop_worker_handles=[SimpleNamespace(compute_score=SimpleNamespace(remote=score))],
        _compute_multi_modal_inputs=lambda *_: {},
        _compute_position_ids=lambda ids, mask, *_: torch.arange(ids.shape[1]).unsqueeze(0),
        _get_mm_processor_kwargs=lambda *_: {},
    )
    output = load("verl.experimental.agent_loop:AgentLoopOutput")(
        prompt_ids=[1], response_ids=[2], response_mask=[1], metrics={}, extra_fields={}, reward_score=scored
    )
    kwargs = {"uid": "a", "session_id": 0, "data_source": "gsm8k", "raw_prompt": [{"role": "user", "content": "Q"}]}
    method = load("verl.experimental.agent_loop.agent_loop:AgentLoopWorker._compute_score")
    asyncio.run(method(worker, [output], kwargs))
    assert len(seen) == calls, f"a reward of {scored} was scored {len(seen)} times"
    if scored is None:
        assert output.reward_score == 1.0 and output.extra_fields["reward_extra_info"] == {"acc": True}
        assert seen[0].non_tensor_batch["data_source"].tolist() == ["gsm8k"]
    else:
        assert output.reward_score == 0.25


@seam("reward score of verl's own GSM8K and prime_code", "benchmarks/sandbox.py", "examples/tiny/evaluate.py")
def test_the_scorers_that_we_compare_with_are_there():
    check_accepts("verl.utils.reward_score.prime_code:compute_score", "completion", "test_cases", "continuous")
    assert load("verl.utils.reward_score:default_compute_score")("openai/gsm8k", "#### 4", "4") == 1.0


@seam("metric_utils.bootstrap_metric", "benchmarks/evaluation.py")
def test_best_at_k_is_drawn_with_replacement():
    (mean, _), *_ = load("verl.trainer.ppo.metric_utils:bootstrap_metric")([1.0, 0.0, 0.0, 0.0], 4, [np.max])
    # 1 - (3/4)**4, where pass@4 of one right sample in four is 1.
    assert mean == pytest.approx(0.684, abs=0.05)
