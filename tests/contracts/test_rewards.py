"""How verl calls a verifier and what it makes of the result; when a session is scored."""

import asyncio
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict

from tests.contracts.support.seams import check_accepts, load, seam
from verl_cipo.core.verdict import fault, verdict

MANAGERS = "verl.experimental.reward_loop.reward_manager"
NAIVE = f"{MANAGERS}.naive:NaiveRewardManager"
DAPO = f"{MANAGERS}.dapo:DAPORewardManager"
RATE_LIMITED = f"{MANAGERS}.limited:RateLimitedRewardManager"
VERDICT = "verl_cipo/core/verdict.py"
VERIFIERS = (
    "verl_cipo/rewards/math/__init__.py",
    "verl_cipo/rewards/code/__init__.py",
    "verl_cipo/rewards/math/judge.py",
)


def judged(compute_score, extra_info=None, *, manager=NAIVE, reward=None) -> dict:
    """The result of a reward manager of verl for the response "AB".

    Args:
        reward: the section `reward` of the config.
    """
    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: "".join(map(chr, ids)))
    data = load("verl:DataProto")(
        batch=TensorDict(
            {"responses": torch.tensor([[65, 66, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 0]])}, batch_size=[1]
        ),
        non_tensor_batch={
            "data_source": np.array(["gsm8k"], dtype=object),
            "reward_model": np.array([{"ground_truth": "4", "style": "rule"}], dtype=object),
            "extra_info": np.array([extra_info or {}], dtype=object),
            "__num_turns__": np.array([2]),
            "tool_extra_fields": np.array([{"tool": "used"}], dtype=object),
        },
    )

    async def run():
        config = OmegaConf.create({"reward": reward or {}})
        return await load(manager)(config=config, tokenizer=tokenizer, compute_score=compute_score).run_single(data)

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


@seam(
    "NaiveRewardManager.run_single, what the second verifier is asked, import_utils.load_extern_object",
    "verl_cipo/integration/rollout/second_verifier.py",
    "verl_cipo/integration/reward_function.py",
)
def test_the_second_verifier_is_asked_what_the_first_one_is(tmp_path):
    from verl_cipo.core.config import CIPOConfig
    from verl_cipo.integration.rollout.second_verifier import SecondVerifier

    (tmp_path / "mine.py").write_text("seen = []\n\ndef score(**asked):\n    seen.append(asked)\n    return 1.0\n")
    function = load("verl.utils.import_utils:load_extern_object")(str(tmp_path / "mine.py"), "score")
    first = judged(function, {"index": 3})
    config = CIPOConfig(preset="stream", second_verifier=f"{tmp_path / 'mine.py'}:score")
    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: "".join(map(chr, ids)))
    asker = SecondVerifier(function, config, tokenizer)
    output = load("verl.experimental.agent_loop:AgentLoopOutput")(
        prompt_ids=[1],
        response_ids=[65, 66],
        response_mask=[1, 1],
        metrics={},
        num_turns=2,
        extra_fields={"tool": "used"},
    )
    row = {"data_source": "gsm8k", "reward_model": {"ground_truth": "4"}, "extra_info": {"index": 3}}
    assert asyncio.run(asker.ask(output, row, counts=Counter(), session="u_0")) is True
    one, two = function.__globals__["seen"]
    assert one == two, f"verl's reward manager gives {one}, the second verifier was given {two}"
    assert first["reward_score"] == 1.0


@seam("NaiveRewardManager.run_single, a verifier that returns a dict", "verl_cipo/rewards/outcome.py", *VERIFIERS)
def test_a_verifiers_fields_are_kept_beside_its_score():
    found = judged(lambda **_: {"score": 1.0, "acc": True, "pred": "4"})
    assert found == {"reward_score": 1.0, "reward_extra_info": {"score": 1.0, "acc": True, "pred": "4"}}


@seam("NaiveRewardManager.run_single, a verifier that returns a float", VERDICT)
def test_a_bare_score_is_filed_as_acc_without_a_score_beside_it():
    assert judged(lambda **_: 0.5) == {"reward_score": 0.5, "reward_extra_info": {"acc": 0.5}}


@seam("NaiveRewardManager.run_single, a verifier that raises", "verl_cipo/integration/rollout/verify.py")
def test_a_verifiers_exception_is_not_turned_into_a_score():
    def score(**_):
        raise RuntimeError("the sandbox is away")

    with pytest.raises(RuntimeError, match="the sandbox is away"):
        judged(score)


# One token of "AB" is too many: a penalty of -1 * .75.
OVERLONG = {
    "reward_kwargs": {
        "max_resp_len": 2,
        "overlong_buffer_cfg": {"enable": True, "len": 1, "penalty_factor": 0.75, "log": True},
    }
}


@seam("DAPORewardManager.run_single, the overlong penalty", VERDICT)
@pytest.mark.parametrize("answer", [1.0, {"score": 1.0, "pred": "4"}, {"score": 1.0, "acc": True}])
def test_an_overlong_penalty_is_in_the_reward_and_turns_no_right_answer_wrong(answer):
    found = judged(lambda **_: answer, manager=DAPO, reward=OVERLONG)
    reward, info = found["reward_score"], found["reward_extra_info"]
    assert float(reward) == 0.25 and fault(reward, info) is None
    assert verdict(reward, info, 0.5), "a penalty decides where the verifier has said right"


@seam("RateLimitedRewardManager.run_single, a verifier that is not reached", VERDICT)
def test_a_time_out_or_an_error_of_a_rate_limited_verifier_is_no_verdict():
    async def hangs(**_):
        await asyncio.sleep(60)

    async def fails(**_):
        raise ConnectionError("429 Too Many Requests")

    for score, reason in ((hangs, "reward.timeout"), (fails, "429")):
        found = judged(score, manager=RATE_LIMITED, reward={"timeout": 0.05})
        assert found["reward_score"] == 0.0, "verl has a reward of its own for what was not judged"
        assert reason in fault(found["reward_score"], found["reward_extra_info"])


@seam("RateLimitedRewardManager.run_single, a verifier that reports a time-out", VERDICT)
@pytest.mark.parametrize("answer", [{"score": 0.0, "timeout": True}, {"score": 0.0, "error": "ZeroDivisionError"}, 0.0])
def test_a_verifiers_own_time_out_is_its_verdict(answer):
    found = judged(lambda **_: answer, manager=RATE_LIMITED)
    assert fault(found["reward_score"], found["reward_extra_info"]) is None


@seam("reward.get_custom_reward_fn", "verl_cipo/integration/dry_run.py", "verl_cipo/rewards/__init__.py")
def test_a_verifier_is_named_by_package_and_function():
    section = {"path": "pkg://verl_cipo.rewards.math", "name": "compute_score", "reward_kwargs": {"timeout_s": 1.0}}
    config = OmegaConf.create({"reward": {"custom_reward_function": section}})
    found = load("verl.trainer.ppo.reward:get_custom_reward_fn")(config)
    from verl_cipo.rewards.math import compute_score

    assert found.args == (compute_score, {"timeout_s": 1.0}), "path, name or reward_kwargs are read in another way"


@seam(
    "AgentLoopWorker._compute_score",
    "verl_cipo/integration/rollout/verify.py",
    "verl_cipo/integration/rollout/worker.py",
)
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


@seam("reward score of verl's own GSM8K and prime_code", "benchmarks/verification/code.py", "examples/tiny/evaluate.py")
def test_the_scorers_that_we_compare_with_are_there():
    check_accepts("verl.utils.reward_score.prime_code:compute_score", "completion", "test_cases", "continuous")
    assert load("verl.utils.reward_score:default_compute_score")("openai/gsm8k", "#### 4", "4") == 1.0


@seam("metric_utils.bootstrap_metric", "benchmarks/evaluation.py")
def test_best_at_k_is_drawn_with_replacement():
    (mean, _), *_ = load("verl.trainer.ppo.metric_utils:bootstrap_metric")([1.0, 0.0, 0.0, 0.0], 4, [np.max])
    # 1 - (3/4)**4, where pass@4 of one right sample in four is 1.
    assert mean == pytest.approx(0.684, abs=0.05)
