"""A verifier that gives no verdict is asked again, and never taken for one that said wrong."""

import asyncio
from collections import Counter

import pytest
from verl.experimental.agent_loop import AgentLoopOutput

from verl_cipo.integration.rollout import verify as verifying
from verl_cipo.integration.rollout.verify import VerifierFailed, verify


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr(verifying.asyncio, "sleep", sleep)
    return slept


def ask(answers, *, retries=2):
    """Each answer is a reward, an exception, or the outcome that comes with a score of 0."""
    output = AgentLoopOutput(prompt_ids=[1], response_ids=[2], response_mask=[1], metrics={})
    left, counts = list(answers), Counter()

    async def score():
        assert output.reward_score is None, "verl would not score it again"
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        outcome = {"outcome": answer} if isinstance(answer, str) else {}
        output.reward_score = 0.0 if outcome else answer
        output.extra_fields["reward_extra_info"] = outcome

    def count(name):
        counts[name] += 1

    try:
        asyncio.run(verify(score, output, retries=retries, count=count, session="u_0"))
    except VerifierFailed as error:
        return error, counts
    return output.reward_score, counts


def test_a_verdict_is_taken_at_once(pauses):
    assert ask([1.0]) == (1.0, {})
    assert pauses == []


@pytest.mark.parametrize("failure", [ConnectionError("away"), "infrastructure_error"])
def test_a_failure_is_asked_again(failure, pauses):
    assert ask([failure, failure, 1.0]) == (1.0, {"verifier/errors": 2})
    assert pauses == [0.5, 1.0]


def test_wrong_and_timed_out_answers_are_verdicts():
    assert ask(["wrong"]) == (0.0, {})
    assert ask(["timeout"]) == (0.0, {})


def test_what_could_not_be_decided_is_counted_apart():
    assert ask(["undecided"]) == (0.0, {"verifier/undecided": 1})


@pytest.mark.parametrize("garbage", [float("nan"), float("-inf"), "right", [1.0]])
def test_a_reward_that_is_no_number_is_asked_again(garbage):
    output = AgentLoopOutput(prompt_ids=[1], response_ids=[2], response_mask=[1], metrics={})
    left, counts = [garbage, 0.5], Counter()

    async def score():
        # As verl does: whatever a verifier returned.
        object.__setattr__(output, "reward_score", left.pop(0))

    def count(name):
        counts[name] += 1

    asyncio.run(verify(score, output, retries=1, count=count, session="u_0"))
    assert output.reward_score == 0.5 and counts == {"verifier/errors": 1}


def test_after_the_last_try_there_is_no_score():
    error, counts = ask([ConnectionError("away")] * 3)
    assert isinstance(error, VerifierFailed) and isinstance(error.__cause__, ConnectionError)
    assert "u_0" in str(error) and "3 tries" in str(error)
    assert counts == {"verifier/errors": 3, "verifier/given_up": 1}


def test_an_agent_loop_that_scores_by_itself_is_not_overruled():
    output = AgentLoopOutput(prompt_ids=[1], response_ids=[2], response_mask=[1], metrics={}, reward_score=0.0)
    output.extra_fields["reward_extra_info"] = {"outcome": "infrastructure_error"}

    async def score():
        if output.reward_score is None:  # as verl does, by the data set's own verifier
            output.reward_score, output.extra_fields["reward_extra_info"] = 1.0, {}

    with pytest.raises(VerifierFailed):
        asyncio.run(verify(score, output, retries=2, count=lambda _: None, session="u_0"))


def test_no_retries():
    error, counts = ask(["infrastructure_error"], retries=0)
    assert isinstance(error, VerifierFailed) and counts["verifier/errors"] == 1
