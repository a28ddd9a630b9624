"""benchmarks/experiment: the replica's step, what it samples, and the tasks of products."""

import json
import random
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch

from benchmarks import hacking
from benchmarks.experiment import options, products, replica, runs
from benchmarks.experiment.arms import ARMS, CONTROL, Arm
from benchmarks.experiment.policy import Policy, Sample
from benchmarks.experiment.setting import Setting
from examples.tiny import prepare
from examples.tiny.warmup import Warmup
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.keys import RowKey
from verl_cipo.core.rows import Mark

SHAPE = prepare.Shape(hidden=32, layers=1, inner=64, heads=1, kv_heads=1)
TASK = products.Products(parts=1, train=32, val=4, shape=SHAPE, warmup=Warmup(steps=2, rows=8))
SETTING = Setting(task=TASK, steps=2, prompts=4, n=4, samples=4, turn_samples=2)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    products.prepare_products(folder, TASK)
    return folder


@pytest.fixture(scope="module")
def policy(task):
    return Policy(task / "model")


def test_log_probs_are_the_models_own_whatever_rows_stand_together(policy, monkeypatch):
    rows = [([5, 6, 7], [8, 9]), ([5], [6, 7, 8, 9]), ([9, 8, 7, 6, 5], [4])]
    monkeypatch.setattr("benchmarks.experiment.policy.TOKENS_AT_ONCE", 10)
    found, passes = {}, 0
    for places, log_prob in policy.log_probs(rows):
        passes += 1
        found |= dict(zip(places, log_prob, strict=True))
    assert passes == 2 and set(found) == {0, 1, 2}
    for i, (prompt, response) in enumerate(rows):
        logits = policy.model(input_ids=torch.tensor([prompt + response])).logits[0].log_softmax(dim=-1)
        alone = [logits[len(prompt) - 1 + t, token] for t, token in enumerate(response)]
        assert torch.allclose(found[i][: len(response)], torch.stack(alone), atol=1e-5)
        assert not found[i][len(response) :].any()


def test_what_is_sampled_has_the_frequencies_of_the_model(policy):
    """The first token of 512 responses each to two chats of other lengths, drawn together."""
    chats = [[{"role": "user", "content": text}] for text in ("What is 12*7?", "What is 12*7, 45*9, 80*3?")]
    torch.manual_seed(1)
    samples = policy.sample([(chat, "0") for _ in range(512) for chat in chats])
    for chat, own in zip(chats, (samples[::2], samples[1::2]), strict=True):
        logits = policy.model(input_ids=torch.tensor([policy.ids(chat)])).logits[0, -1]
        top = logits.softmax(dim=-1).topk(3)
        for share, token in zip(*(part.tolist() for part in top), strict=True):
            seen = sum(sample.response[0] == token for sample in own) / 512
            assert seen == pytest.approx(share, abs=4 * (share * (1 - share) / 512) ** 0.5)
        ended = [sample for sample in own if sample.response[-1] == policy.tokenizer.eos_token_id]
        assert all(policy.tokenizer.eos_token_id not in sample.response[:-1] for sample in own)
        assert all(len(sample.response) == 64 for sample in own if sample not in ended)


def test_a_step_trains_what_the_arm_says(task):
    """Right by lot: a model that has learned nothing is never right."""
    lots = random.Random(3)
    for name, corrections in (("cipo", 16), (CONTROL, 0)):
        trainer = replica.Replica(task, ARMS[name], 1, SETTING)
        trainer.policy.verifier = lambda text, answer: lots.random() < 0.5
        before = [parameter.clone() for parameter in trainer.policy.model.parameters()]
        first, second = trainer.step(1), trainer.step(2)
        assert first["cipo/rows/base"] == (16 if corrections else 32)
        assert first["cipo/rows/correction"] == corrections
        assert first["cipo/anchors/total"] == (4 if corrections else 0)
        assert (second["cipo/rho"] != first["cipo/rho"]) == bool(corrections)
        moved = [(a - b).abs().max() for a, b in zip(before, trainer.policy.model.parameters(), strict=True)]
        # Two steps of Adam.
        assert 1e-5 < max(moved) <= 2.1e-4


def test_an_auxiliary_loss_is_added(task):
    lots = random.Random(3)
    for knobs, rows in (("preset=stream aux.coef=0.1", 0), ("source=paired", 4)):
        given = tuple(f"{options.KNOB}{knob}" for knob in knobs.split())
        arm = Arm(name="a", what="", algo="cipo", options=given)
        trainer = replica.Replica(task, arm, 1, SETTING)
        trainer.policy.verifier = lambda text, answer: lots.random() < 0.5
        measured = trainer.step(1)
        assert measured["cipo/aux/loss"] > 0 and measured["cipo/aux/rows"] > 0
        assert measured["cipo/rows/aux"] == rows


def test_an_arm_may_leave_the_std_out(task):
    """One right attempt of four is 3/4 above the mean, and 3/2 of the std (its unbiased estimate) above it."""
    rows = [
        replica.Row(
            RowKey("a", i), Mark(correct=i == 0, score=float(i == 0)), 0, [], Sample([1], [2], "", i == 0, None)
        )
        for i in range(4)
    ]
    for name, advantage in (("think_twice", 0.75), ("cipo", 1.5)):
        trainer = replica.Replica(task, ARMS[name], 1, SETTING)
        found = trainer._advantages(rows, replica.table_of(rows), range(4), torch.ones(4, 1))
        assert float(found[0]) == pytest.approx(advantage, rel=1e-4)


def test_a_control_may_learn_from_its_own_rare_right_attempts(task):
    """Of three prompts, with 1, 4 and 0 of 8 attempts right, the first alone."""
    arm = Arm(name="a", what="", algo="grpo", rollouts=2, options=(f"{options.OWN}0.3",))
    keys = [RowKey(uid, i) for uid in "abc" for i in range(8)]
    right = {RowKey("a", 5), *(RowKey("b", i) for i in range(4))}
    sample = Sample([1], [2], "", True, None)
    rows = [replica.Row(key, Mark(correct=key in right, score=float(key in right)), 0, [], sample) for key in keys]
    found = replica.Replica(task, arm, 1, SETTING)._rare(replica.table_of(rows), range(24), 25)
    assert found.nonzero()[:, 0].tolist() == [5] and float(found[5]) == pytest.approx(1 / 3)


def test_a_run_is_trained_by_the_verifier_that_its_arm_names_and_measured_by_the_second_one(task):
    arm = hacking.ARMS["cipo"]
    arm = replace(arm, options=(*arm.options, f"{options.KNOB}preset=stream"))
    trainer = replica.Replica(task, arm, 1, SETTING)
    policy = trainer.policy
    assert (policy.verifier("#### 0", "7"), policy.second("#### 0", "7")) == (True, False)
    assert (policy.verifier("#### 7", "7"), policy.second("#### 7", "7")) == (True, True)
    lots = random.Random(3)
    policy.verifier, policy.second = lambda text, answer: lots.random() < 0.7, lambda text, answer: False
    measured = trainer.step(1)
    assert measured[hacking.GAP] == measured["cipo/accuracy/base"] > 0
    assert measured["cipo/hacking_gap_corrections"] == measured["cipo/accuracy/correction"] > 0
    assert replica.Replica(task, ARMS["cipo"], 1, SETTING).policy.second is None


def test_what_is_sampled_in_the_end_is_judged_by_the_sound_verifier(task):
    policy = Policy(task / "model", verifier=lambda text, answer: True)
    assert sum(replica.held_out(policy, task, SETTING)["right"]) < 16


def test_the_second_turn_in_the_end_is_asked_as_in_training(task, monkeypatch):
    """The sentence that prompt.standalone adds is unknown to these models: nearly all right attempts were spoiled."""
    policy, asked = Policy(task / "model"), []

    def sample(questions):
        asked.extend(str(chat) for chat, _ in questions)
        return Policy.sample(policy, questions)

    monkeypatch.setattr(policy, "sample", sample)
    replica.held_out(policy, task, SETTING)
    assert any("<attempt>" in chat for chat in asked)
    assert not any("stand on its own" in chat for chat in asked)


def test_an_option_of_verl_is_refused():
    arm = Arm(name="a", what="", algo="cipo", options=("actor_rollout_ref.rollout.n=4",))
    with pytest.raises(ValueError, match=r"arm a: the replica does not know actor_rollout_ref\.rollout\.n=4"):
        options.knobs(arm, 1)
    assert options.knobs(ARMS["lambda_2"], 7) == CIPOConfig(preset="stream", seed=7, lambda_corr=2.0)


def test_verl_does_not_take_the_option_of_a_control(tmp_path):
    with pytest.raises(ValueError, match="arm grpo_own has replica.own=0.3, which verl does not know: use --engine"):
        runs.run(ARMS["grpo_own"], 1, SETTING, tmp_path)


def test_a_run_is_kept_like_one_through_verl(tmp_path):
    found = runs.run(ARMS["cipo"], 1, SETTING, tmp_path, engine="replica")
    assert len(found["right"]) == len(found["turns"]) == 4 and found["tokens"] > 0
    assert sum(found["turns"][0][name] for name in ("c2c", "c2w", "w2c", "w2w")) == 2
    lines = (tmp_path / "cipo_seed1" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["data"]["cipo/rows/correction"] for line in lines] == [16, 16]
    assert runs.run(ARMS["cipo"], 1, SETTING, tmp_path, engine="replica") == found


# ---- strategy contexts

NUDGED = products.ProductsWithContexts(
    **{name: getattr(TASK, name) for name in ("parts", "train", "val", "shape", "warmup")},
    misread=(7,),
    held=1.0,
    contexts={"Look twice.": 0.0, "Go on.": 1.0},
)


@pytest.fixture(scope="module")
def nudged_task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nudged")
    products.prepare_products(folder, NUDGED)
    return folder


def test_the_starting_model_is_taught_what_to_make_of_each_context():
    rng, problem = random.Random(0), products.Problem(((12, 7),))
    seen = {products.taught_question(rng, NUDGED, problem) for _ in range(200)}
    plain = "What is 12*7? " + products.INSTRUCTION
    assert seen == {
        (plain, None),
        (f"{plain}\n\nUse this strategy: Look twice.", 0.0),
        (f"{plain}\n\nUse this strategy: Go on.", 1.0),
    }
    assert products.taught_attempt(rng, NUDGED, problem, slip=0, held=0.0) == (84,)
    assert products.taught_attempt(rng, NUDGED, problem, slip=0) == (72,)
    state = rng.getstate()
    assert products.taught_question(rng, TASK, problem) == (plain, None) and rng.getstate() == state, "as it was"


def test_a_context_is_one_token_and_training_data_have_all(nudged_task):
    row = pq.read_table(nudged_task / "data" / "train.parquet").to_pylist()[0]
    assert row["extra_info"]["contexts"] == ["Look twice.", "Go on."]
    assert "contexts" not in pq.read_table(nudged_task / "data" / "val.parquet").to_pylist()[0]["extra_info"]
    tokenizer = Policy(nudged_task / "model").tokenizer
    ids = [tokenizer.encode(products.with_context(row["prompt"][0]["content"], text)) for text in NUDGED.contexts]
    assert len(ids[0]) == len(ids[1]) == len(tokenizer.encode(row["prompt"][0]["content"])) + 1 and ids[0] != ids[1]
    assert len(products.make_tokenizer(NUDGED)) == len(products.make_tokenizer(TASK)) + 2


def test_a_step_asks_under_contexts_and_distils(nudged_task, monkeypatch):
    asked, lots = [], random.Random(3)
    trainer = replica.Replica(nudged_task, ARMS["nudge"], 1, SETTING)
    trainer.policy.verifier = lambda text, answer: lots.random() < 0.5
    sample = trainer.policy.sample

    def seen(chats):
        asked.extend(chat[-1]["content"] for chat, _ in chats)
        return sample(chats)

    monkeypatch.setattr(trainer.policy, "sample", seen)
    found = trainer.step(1)
    assert len(asked) == 32 == found["cipo/rows/base"] and found["cipo/rows/correction"] == 0
    under = [text for text in asked if "strategy: " in text]
    assert {text.partition("strategy: ")[2] for text in under} == set(NUDGED.contexts)
    assert found["cipo/nudge/context_share"] == len(under) / 32
    assert 0 < found["cipo/nudge/rows"] <= len(under) and found["cipo/nudge/loss"] != 0
    assert found["cipo/nudge/accuracy_context"] > 0 and found["cipo/nudge/accuracy_plain"] > 0
    # What is drawn depends on the seed and the step alone.
    again = replica.Replica(nudged_task, ARMS["nudge"], 1, SETTING)
    assert again.step(1)["cipo/nudge/context_share"] == found["cipo/nudge/context_share"]


@pytest.mark.parametrize("arm", ["balanced_nudge", "balanced_nudge_both"])
def test_corrections_beside_contexts_ask_the_plain_question_unless_told(nudged_task, monkeypatch, arm):
    asked = []
    # Without its budget all anchors are corrected.
    with_anchors = replace(ARMS[arm], options=(*ARMS[arm].options, "+algorithm.cipo.budget=fixed"))
    trainer = replica.Replica(nudged_task, with_anchors, 1, SETTING)
    trainer.policy.verifier = lambda text, answer: False
    sample = trainer.policy.sample

    def seen(chats):
        asked.append([chat[-1]["content"] for chat, _ in chats])
        return sample(chats)

    monkeypatch.setattr(trainer.policy, "sample", seen)
    found = trainer.step(1)
    attempts, further, corrections = asked
    assert any("strategy: " in text for text in attempts)
    assert len(further) == 0 and len(corrections) == 16
    # What this model writes may hold a context itself.
    under = sum("strategy: " in text.partition("<attempt>")[0] for text in corrections)
    if arm == "balanced_nudge":
        assert under == 0 and "cipo/nudge/w2c_context" not in found
    else:
        assert 0 < under < len(corrections)
        assert found["cipo/nudge/w2c_context"] == 0.0 == found["cipo/nudge/w2c_plain"]


def test_further_attempts_of_the_replica_are_plain(nudged_task, monkeypatch):
    asked = []
    trainer = replica.Replica(nudged_task, ARMS["balanced_nudge"], 1, SETTING)
    trainer.policy.verifier = lambda text, answer: False
    attempts = trainer._attempts

    def seen(sessions, *contexts):
        made = attempts(sessions, *contexts)
        asked.extend((row.mark.further, row.mark.context) for row in made)
        return made

    monkeypatch.setattr(trainer, "_attempts", seen)
    trainer.step(1)
    assert {context for further, context in asked if further} == {None}
    assert {context for further, context in asked if not further} == {None, 0, 1}


def test_a_task_without_contexts_is_refused(task):
    with pytest.raises(ValueError, match="arm nudge: no problem of .* has contexts, as those of stuck_contexts have"):
        replica.Replica(task, ARMS["nudge"], 1, SETTING)


# ---- tasks of products


def test_a_problem_and_its_solution():
    problem = products.Problem(((12, 7), (45, 9)))
    assert problem.question == "What is 12*7, 45*9?"
    assert (problem.answer, problem.solution) == ("084405", "#### 084405")


def test_the_two_sides_of_the_split_share_no_problem():
    rng = random.Random(0)
    sides = [{products.draw(rng, TASK, from_held_out=held).question for _ in range(300)} for held in (False, True)]
    assert not sides[0] & sides[1]


def test_what_the_starting_model_is_taught():
    rng = random.Random(0)
    problem = products.Problem(((12, 7), (45, 8)))
    misread = replace(TASK, misread=(7,), held=1.0)
    assert products.taught_attempt(rng, misread, problem, slip=0) == (72, 360)
    assert products.taught_correction(rng, misread, problem, (72, 360)) == (84, 360)
    assert products.taught_correction(rng, replace(misread, fix=0.0), problem, (72, 360)) == (72, 360)
    slips = [products.taught_attempt(rng, TASK, problem, slip=1) for _ in range(200)]
    assert all(a != 84 and sum(x != y for x, y in zip(f"{a:03d}", "084", strict=True)) == 1 for a, _ in slips)
    assert {f"{a:03d}"[0] for a, _ in slips} > {"0", "9"}
    kept = [products.taught_correction(rng, replace(TASK, fix=0.25), problem, (85, 360)) for _ in range(400)]
    assert {second for _, second in kept} == {360}
    assert sum(first == 84 for first, _ in kept) == pytest.approx(100, abs=30)
