"""What the auxiliary loss trains of a batch, which rows are appended for it, which rollout corrects which attempt."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_cipo.core.anchors import Attempt, Group
from verl_cipo.core.aux_loss.pairs import pair_up
from verl_cipo.core.aux_loss.plan import COUNTED, AuxPlan, Shown, plan_aux, plan_metrics, signal_share
from verl_cipo.core.config import AuxConfig, CIPOConfig
from verl_cipo.core.keys import RowKey
from verl_cipo.core.metrics import check_names
from verl_cipo.core.prompts import CorrectionPrompt
from verl_cipo.core.rows import CHOSEN, REJECTED, Mark, RowTable

# key -> (answer, right, verdict on the anchor or None for an attempt)
ROWS = {
    "a_0_0": ("yes", True, None),
    "a_1_0": ("nope", False, None),
    "a_2_0": ("never", False, None),
    "b_0_0": ("no", False, None),
    "b_1_0": ("not so", False, None),
    "a_c1_0_0": ("wrong", False, False),
    "a_c1_1_0": ("now yes", True, False),
    "a_c1_2_0": ("yes!", True, False),
    "a_c0_0_0": ("yes", True, True),
}
NO_TEXT, NO_DONOR = "aux/skipped/no_text_question", "aux/skipped/no_donor"


def encode(text):
    return [ord(character) for character in text]


def decode(ids):
    return "".join(map(chr, ids))


def chat(text):
    return [{"role": "user", "content": text}]


def question(key):
    """Prompt a asks "a?"; a correction's prompt is another."""
    return f"{key[0]}?" + " try again" * ("_c" in key)


NO_TOOLS: dict[str, tuple[str, ...] | None] = {}


def planned(
    rows=ROWS, *, bound=(), rejected=None, in_stream=True, prompt_length=10_000, step=1, tools=NO_TOOLS, **knobs
):
    """`rejected`: rows without a token to train; `tools`: key -> what its prompt offers, where that is not nothing."""
    config = CIPOConfig.from_mapping({"preset": "stream", "aux": {"coef": 1.0, **knobs.pop("aux", {})}, **knobs})
    prompt = CorrectionPrompt(
        config.prompt,
        prompt_length=prompt_length,
        count_tokens=lambda messages: sum(len(message["content"]) for message in messages),
        encode=encode,
        decode=decode,
    )
    table = RowTable.of_marks(
        list(rows),
        [Mark(correct=right, anchor_correct=anchor) for _, right, anchor in rows.values()],
        index=["ab".index(key[0]) for key in rows],
        scores=np.array([float(right) for _, right, _ in rows.values()]),
        tokens=np.ones(len(rows), dtype=np.int64),
    )
    read = []

    def shown(keys):
        read.extend(keys)
        return {
            key: Shown(encode(question(key)), encode(rows[key][0]), chat(question(key)), key in bound) for key in keys
        }

    plan = plan_aux(
        table,
        shown,
        config=config,
        prompt=prompt,
        encode=lambda messages, tools=(): encode(messages[0]["content"] + ">" + "".join(tools)),
        offered=lambda key: tools.get(key, ()),
        step=step,
        in_stream=in_stream,
        trained=None if rejected is None else np.array([key not in rejected for key in rows]),
    )
    assert len(read) == len(set(read)) and {row.source for row in plan.rows} <= set(read)
    return plan


def appended(plan):
    """key -> (source, prompt, sign)"""
    assert all(decode(row.prompt_ids).removesuffix(">") == row.messages[0]["content"] for row in plan.rows)
    return {str(row.key): (row.source, row.messages[0]["content"], row.sign) for row in plan.rows}


CONTRASTIVE = {"aux": {"kind": "contrastive"}}

# ---- corrections that were rolled out


def test_right_corrections_of_failed_attempts_are_trained_where_they_are():
    plan = planned()
    assert set(plan.chosen) == {"a_c1_1_0", "a_c1_2_0"} and not plan.rows
    assert planned(rejected=["a_c1_1_0"]).chosen.keys() == {"a_c1_2_0"}


def test_corrections_without_a_stream_get_rows_of_their_own():
    plan = planned(in_stream=False)
    asked = "a? try again"
    assert appended(plan) == {"a_c1a_0_0": ("a_c1_1_0", asked, CHOSEN), "a_c1a_1_0": ("a_c1_2_0", asked, CHOSEN)}
    assert not plan.chosen


def test_contrastive_sets_the_failed_attempt_against_the_first_right_correction():
    plan = planned(**CONTRASTIVE)
    assert appended(plan) == {"a_c1r_0_0": ("a_1_0", "a? try again", REJECTED)}
    assert plan.chosen == {"a_c1_1_0": plan.rows[0].pair}
    own = planned(in_stream=False, **CONTRASTIVE)
    assert list(appended(own)) == ["a_c1a_0_0", "a_c1r_0_0"] and len({row.pair for row in own.rows}) == 1


@pytest.mark.parametrize("lost", ["a_c1_1_0", "a_1_0"])
def test_a_pair_of_which_a_side_is_rejected_is_left_out(lost):
    assert planned(rejected=[lost], **CONTRASTIVE) == AuxPlan()


@pytest.mark.parametrize(("options", "skipped"), [({}, 0), ({"in_stream": False}, 1), (CONTRASTIVE, 1)])
def test_a_correction_whose_images_fit_no_other_row_gets_no_row_of_its_own(options, skipped):
    plan = planned(bound=["a_c1_1_0"], **options)
    assert plan.counts[NO_TEXT] == skipped
    assert ("a_c1_1_0" in plan.chosen) == (skipped == 0) and "a_c1_1_0" not in {row.source for row in plan.rows}


# ---- pairs


FAILED_ALONE = {"replay_fraction": 4.0, "rho_init": 0.0, "rho_adaptive": False}


def paired(rows=ROWS, **options):
    return planned(rows, **{"source": "paired", **FAILED_ALONE, **options})


def test_pairs_of_one_prompt_and_of_two():
    plan = paired()
    assert plan.counts["aux/pairs"] == 4 and plan.counts["aux/adjacent"] == 2
    rows = appended(plan)
    assert sorted(rows) == ["a_p1_0_0", "a_p2_0_0", "b_p0_0_0", "b_p1_0_0"]
    assert {(source, sign) for source, _, sign in rows.values()} == {("a_0_0", CHOSEN)}
    assert rows["a_p1_0_0"][1].startswith("a?\n\nHere is an attempt at this problem")
    assert "<attempt>\nnope\n</attempt>" in rows["a_p1_0_0"][1]
    # The question that the response answers.
    assert rows["b_p1_0_0"][1].startswith("a?\n\nHere is another problem")
    assert "<problem>\nb?\n</problem>\n<attempt>\nnot so\n</attempt>" in rows["b_p1_0_0"][1]
    assert not plan.chosen, "sampled corrections are not looked at"


def test_a_pair_of_one_prompt_has_the_wording_of_the_run_and_shows_its_attempt_alone():
    pairs = {"source": "paired", **FAILED_ALONE, "replay_fraction": 2.0}
    plain = planned(**pairs).rows
    own = [row.messages[0]["content"] for row in plain if "Here is another problem" not in row.messages[0]["content"]]
    assert own and len(own) < len(plain)
    knobs = {"attempts": 3, "verdict": "told", "standalone": True}
    for before, after in zip(plain, planned(**pairs, prompt=knobs).rows, strict=True):
        told = after.messages[0]["content"]
        if before.messages[0]["content"] in own:
            assert told.count("<attempt>") == 1 and "The attempt is wrong." in told and "stand on its own" in told
        else:
            assert told == before.messages[0]["content"], "that of two prompts has a text of its own"
    for before, after in zip(plain, planned(**pairs, prompt={"form": "assistant_turn"}).rows, strict=True):
        if before.messages[0]["content"] in own:
            assert [message["role"] for message in after.messages] == ["user", "assistant", "user"]
        else:
            assert after.messages == before.messages


def test_a_share_of_the_pairs_shows_a_right_attempt():
    """Two prompts, ten pairs: three of them right ones, of which the first prompt has two."""
    rows = {f"a_{i}_0": (f"a{i}", i < 2, None) for i in range(8)} | {f"b_{i}_0": ("no", False, None) for i in range(8)}
    plan = paired(rows, rho_init=0.3, rho_adaptive=True, replay_fraction=5.0)
    shown = {key: source for key, (source, _, _) in appended(plan).items() if key.startswith(("a_p0_", "a_p1_"))}
    assert shown == {"a_p0_0_0": "a_1_0", "a_p1_0_0": "a_0_0"}
    assert plan.counts["aux/pairs"] == 2 + 7
    alone = paired(rows, rho_init=0.3, rho_adaptive=True, replay_fraction=5.0, **CONTRASTIVE)
    assert {row.key.group for row in alone.rows} & {"a_p0", "a_p1"} == set()


def test_contrastive_pairs_are_of_one_prompt_only():
    plan = paired(**CONTRASTIVE)
    assert plan.counts["aux/pairs"] == 2 and plan.counts["aux/skipped/other_question"] == 2
    rows = appended(plan)
    assert sorted(rows) == ["a_p1_0_0", "a_p1_1_0", "a_p2_0_0", "a_p2_1_0"]
    assert rows["a_p1_1_0"] == ("a_1_0", rows["a_p1_0_0"][1], REJECTED)
    assert [row.pair for row in plan.rows] == [9, 9, 10, 10], "numbered beyond the rows"


def test_both_sources_are_trained_together():
    plan = planned(source="both", replay_fraction=4.0, **CONTRASTIVE)
    pairs = Counter([*plan.chosen.values(), *(row.pair for row in plan.rows)])
    assert len(pairs) == 3 and set(pairs.values()) == {2}


def test_the_budget_counts_prompts_and_those_of_medium_difficulty_come_first():
    rows = {key: row for key, row in ROWS.items() if "_c" not in key}
    assert list(appended(paired(rows | {"a_2_0": ("never", True, None)}, replay_fraction=0.5))) == ["a_p1_0_0"]
    assert paired(replay_fraction=0.0) == AuxPlan()


def test_what_could_not_be_paired_is_counted():
    wrong = {key: (text, False, anchor) for key, (text, _, anchor) in ROWS.items()}
    assert paired(wrong).counts == Counter({NO_DONOR: 5})
    assert paired(rejected=["a_0_0"]).counts == Counter({NO_DONOR: 4}), "nothing right is left"
    assert paired(prompt_length=40).counts == Counter({"aux/skipped/too_long": 4})
    assert paired(bound=["a_1_0"]).counts == Counter({NO_TEXT: 1, "aux/pairs": 3, "aux/adjacent": 2})
    assert paired(bound=["a_0_0"]).counts == Counter({NO_TEXT: 4})


def test_a_rejected_attempt_is_not_paired():
    assert sorted(appended(paired(rejected=["a_1_0", "b_0_0", "b_1_0"]))) == ["a_p2_0_0"]
    assert len(paired(rejected=["b_0_0", "b_1_0"], replay_fraction=1.0).rows) == 1, "one prompt is left"


def test_the_draw_depends_on_the_step():
    rows = {f"a_{session}_0": ("x", session > 0, None) for session in range(5)}
    assert len({paired(rows, step=step).rows[0].source for step in range(12)}) > 1


# ---- what the writers ask of a plan


def test_rows_that_lost_all_tokens_take_their_partners_with_them_and_nobody_else():
    plan = planned(source="both", replay_fraction=4.0, **CONTRASTIVE)
    keys = [*ROWS, "padding", *(str(row.key) for row in plan.rows)]

    def trained(*without):
        return {key: sign for key, sign in zip(keys, plan.signs(keys, without=without)[0], strict=True) if sign}

    everything = trained()
    assert len(everything) == 6 and sum(everything.values()) == 0
    assert set(everything) - set(trained("a_c1r_0_0")) == {"a_c1r_0_0", "a_c1_1_0"}
    assert set(everything) - set(trained("a_p2_0_0", "a_0_0", "padding")) == {"a_p2_0_0", "a_p2_1_0"}
    sign, pair = plan.signs(["a_0_0", "a_c1_1_0", "a_c1r_0_0"])
    assert (sign, pair) == ([0.0, CHOSEN, REJECTED], [-1, 0, 0])


def test_counts_of_all_updates_of_a_step_are_added():
    config = CIPOConfig(preset="stream", aux=AuxConfig(coef=1.0))
    metrics = plan_metrics([planned(source="both", **FAILED_ALONE), planned(in_stream=False)], config)
    # Two corrections and four pairs; two corrections in rows of their own.
    assert metrics["cipo/aux/rows"] == 2 + 4 + 2 and metrics["cipo/rows/aux"] == 4 + 2
    assert metrics["cipo/aux/pairs"] == 4
    check_names(metrics)
    assert metrics["cipo/aux/share"] == 1
    assert plan_metrics([], config) == {f"cipo/{name}": 0.0 for name in COUNTED}
    assert plan_metrics([], CIPOConfig(preset="stream")) == {}


def test_with_by_signal_the_loss_counts_by_the_prompts_whose_attempts_differ():
    """Those of a do, both of b are wrong; corrections and rejected rows change nothing."""
    by_signal = {"aux": {"by_signal": True}}
    assert planned(**by_signal).share == 0.5 and planned().share == 1
    assert planned(rejected=["a_0_0"], **by_signal).share == 0.5
    alike = {key: (text, key[0] == "a" or right, anchor) for key, (text, right, anchor) in ROWS.items()}
    assert planned(alike, **by_signal).share == 0
    config = CIPOConfig(preset="stream", aux=AuxConfig(coef=1.0, by_signal=True))
    metrics = plan_metrics([planned(**by_signal), planned(alike, **by_signal)], config)
    check_names(metrics)
    assert metrics["cipo/aux/share"] == 0.25


@pytest.mark.parametrize(
    ("scores", "share"),
    [
        ([[1, 0], [0, 0], [1, 1], [-1, 1]], 0.5),
        ([[0.3, 0.3 + 1e-8], [70.0, 70.0 + 1e-6], [-0.2, -0.1]], 1 / 3),
        ([[0.5], []], 0),
        ([], 0),
    ],
)
def test_attempts_differ_by_their_scores_whatever_is_right(scores, share):
    groups = [
        Group(str(i), tuple(Attempt(str(i), i, session, True, float(score)) for session, score in enumerate(own)))
        for i, own in enumerate(scores)
    ]
    assert signal_share(groups) == pytest.approx(share)


def test_appended_rows_are_in_no_group_of_the_batch():
    plan = planned(source="both", replay_fraction=4.0, in_stream=False)
    assert not {row.key.group for row in plan.rows} & {RowKey.parse(key).group for key in ROWS}


# ---- which right rollout corrects which wrong attempt


def group(index, outcomes, uid=None):
    """outcomes: a string of + (right) and - (wrong), one a session."""
    uid = uid or f"u{index}"
    return Group(
        uid,
        tuple(Attempt(uid, index, session, mark == "+", float(mark == "+")) for session, mark in enumerate(outcomes)),
    )


def failed(groups):
    return [attempt for group in groups for attempt in group.attempts if not attempt.correct]


def donors(groups, **key):
    return {
        (pair.anchor.uid, pair.anchor.session): (pair.donor.uid, pair.donor.session, pair.same_prompt)
        for pair in pair_up(groups, failed(groups), **({"seed": 1, "step": 1} | key))
    }


def test_the_same_prompt_comes_first():
    groups = [group(0, "++"), group(1, "-+"), group(2, "+")]
    assert donors(groups) == {("u1", 0): ("u1", 1, True)}


def test_else_the_nearest_prompt_in_the_order_of_index():
    # 5 is nearer to 9 than 1 is in the order (1, 5, 9, 12), where the distance of the numbers does not matter.
    groups = [group(9, "-"), group(1, "+"), group(12, "-"), group(5, "+")]
    assert donors(groups) == {("u9", 0): ("u5", 0, False), ("u12", 0): ("u1", 0, False)}


def test_of_two_equally_near_prompts_it_is_the_following():
    assert donors([group(0, "+"), group(1, "-"), group(2, "+")]) == {("u1", 0): ("u2", 0, False)}


def test_the_order_is_a_ring():
    groups = [group(0, "+"), group(1, "-"), group(2, "-"), group(3, "-"), group(4, "-")]
    assert {uid: donor for (uid, _), (donor, _, _) in donors(groups).items()} == dict.fromkeys(
        ("u1", "u2", "u3", "u4"), "u0"
    )
    groups = [group(0, "-"), group(1, "-"), group(2, "-"), group(3, "-"), group(4, "+"), group(5, "+")]
    # 5 is one step before 0 and two before 1, 4 is two after 2.
    assert [donors(groups)[uid, 0][0] for uid in ("u0", "u1", "u2", "u3")] == ["u5", "u5", "u4", "u4"]


def test_numbers_stand_before_strings_and_one_index_is_ordered_by_uid():
    groups = [group("a", "-"), group(7, "+"), group("b", "+"), group(8, "-")]
    # 7, 8, a, b: the following of a is b, of 8 the nearest is 7.
    assert {uid: donor for (uid, _), (donor, _, _) in donors(groups).items()} == {"ua": "ub", "u8": "u7"}
    groups = [group(0, "-", "x"), group(0, "+", "z"), group(0, "+", "y")]
    # Another prompt, for all that is known: a data set without an index gives 0 to every prompt.
    assert donors(groups) == {("x", 0): ("y", 0, False)}


def test_a_prompt_that_the_step_has_twice_is_one():
    """The same index and origin, under uids of their own: an answer to one answers the other."""

    def copy(uid, mark):
        return Group(uid, (Attempt(uid, 1, 0, mark == "+", float(mark == "+"), origin="asked"),))

    # Further from the wrong one than its copy are 0, before it, and 2, after it.
    groups = [group(0, "+"), copy("x", "-"), copy("y", "+"), group(2, "+")]
    assert donors(groups) == {("x", 0): ("y", 0, True)}
    assert donors([*groups[:2], copy("y", "-"), group(2, "-")])["y", 0] == ("u0", 0, False)


@pytest.mark.parametrize("names", ["xy", "yx"])
def test_of_two_copies_of_a_prompt_the_own_one_gives_the_donor(names):
    def copy(uid):
        return Group(uid, tuple(Attempt(uid, 1, i, i == 1, float(i == 1), origin="asked") for i in range(2)))

    groups = [copy(uid) for uid in names]
    for step in range(8):
        assert donors(groups, step=step) == {(uid, 0): (uid, 1, True) for uid in names}


def test_prompts_without_attempts_take_no_place():
    # 1 does not count: 0 is one step before 2, and 4 two after it.
    groups = [group(0, "+"), group(1, ""), group(2, "-"), group(3, "-"), group(4, "+")]
    assert donors(groups)["u2", 0][0] == "u0"


def test_nothing_right_means_no_pair():
    groups = [group(0, "--"), group(1, "-")]
    assert pair_up(groups, failed(groups), seed=1, step=1) == []


def test_a_right_attempt_is_followed_by_another_one_or_by_itself_where_it_is_alone():
    groups = [group(0, "+-+"), group(1, "-+")]
    (first, wrong, second), (_, alone) = groups[0].attempts, groups[1].attempts
    pairs = pair_up(groups, [alone, first, wrong, second], seed=1, step=1)
    assert [pair.anchor for pair in pairs] == [alone, first, wrong, second], "in the order of the anchors"
    assert [pair.donor for pair in pairs if pair.anchor.correct] == [alone, second, first]
    assert all(pair.same_prompt for pair in pairs)


def test_an_attempt_of_several_outputs_is_no_answer_to_a_prompt():
    """The last output answers a prompt that has the others in it; shown as the attempt it may be."""
    rows = {
        "a_0_0": ("part", True, None),
        "a_0_1": ("the rest", True, None),
        "a_1_0": ("nope", False, None),
        "b_0_0": ("well", True, None),
        "b_1_0": ("one", False, None),
        "b_1_1": ("two", False, None),
    }
    how = {"source": "paired", "rho_adaptive": False, "rho_init": 0.0}
    plan = planned(rows, **how)
    assert [row.source for row in plan.rows] == ["b_0_0"] and plan.counts["aux/skipped/several_outputs"] == 1
    plan = planned(rows, aux={"kind": "contrastive"}, **how)
    assert not plan.rows and plan.counts["aux/skipped/several_outputs"] == 2
    failed_twice = ROWS | {"a_1_1": ("nope!", False, None), "a_2_1": ("never!", False, None)}
    plan = planned(failed_twice, aux={"kind": "contrastive"})
    assert not plan.rows and plan.counts["aux/skipped/several_outputs"] > 0


def test_an_anchor_of_another_batch_is_an_error():
    with pytest.raises(ValueError, match="anchor of uid 'u5'"):
        pair_up([group(0, "+")], [Attempt("u5", 5, 0, False, 0.0)], seed=1, step=1)


def test_the_donor_is_drawn_evenly_and_anew_for_each_step_seed_and_anchor():
    groups = [group(0, "-++++"), group(1, "-++++")]
    drawn = Counter(donors(groups, step=step)["u0", 0][1] for step in range(1, 2001))
    assert set(drawn) == {1, 2, 3, 4}
    # 500 each, standard deviation 19.
    assert all(400 < count < 600 for count in drawn.values())
    assert len({donors(groups, seed=seed)["u0", 0][1] for seed in range(20)}) > 1
    assert any(donors(groups, step=s)["u0", 0][1] != donors(groups, step=s)["u1", 0][1] for s in range(1, 20))


def test_anchors_of_one_prompt_do_not_all_get_one_donor():
    groups = [group(0, "--------++++++++")]
    assert len({donor for _, donor, _ in donors(groups).values()}) > 2


@given(
    outcomes=st.lists(st.text("+-", max_size=4), min_size=1, max_size=8),
    shuffle=st.randoms(use_true_random=False),
    step=st.integers(0, 5),
)
def test_a_right_donor_from_the_nearest_prompt_whatever_the_order(outcomes, shuffle: random.Random, step):
    groups = [group(index, marks) for index, marks in enumerate(outcomes)]
    found = donors(groups, step=step)
    assert donors(shuffle.sample(groups, len(groups)), step=step) == found
    places = [i for i, marks in enumerate(outcomes) if marks]
    solved = [i for i, marks in enumerate(outcomes) if "+" in marks]
    assert len(found) == (sum(marks.count("-") for marks in outcomes) if solved else 0)
    for (uid, _), (donor, session, same) in found.items():
        own, other = int(uid[1:]), int(donor[1:])
        assert outcomes[other][session] == "+"
        assert same == (uid == donor)

        def distance(place, own=own):
            ahead = (places.index(place) - places.index(own)) % len(places)
            return min(ahead, len(places) - ahead)

        assert distance(other) == min(map(distance, solved))


# ---- tools


def test_the_prompt_of_a_pair_offers_what_the_right_rollout_was_offered():
    rows = {"a_0_0": ("yes", True, None), "a_1_0": ("no", False, None), "b_0_0": ("bad", False, None)}
    knobs = {"source": "paired", "replay_fraction": 2.0, "rho_adaptive": False, "rho_init": 0.0}
    plan = planned(rows, tools={"a_0_0": ("[find]", "[add]"), "a_1_0": ("[x]",)}, **knobs)
    assert {str(row.key) for row in plan.rows} == {"a_p1_0_0", "b_p0_0_0"}
    assert all(decode(row.prompt_ids).endswith(">[find][add]") for row in plan.rows)
    plan = planned(rows, tools={"a_0_0": None}, **knobs)
    assert not plan.rows and plan.counts["aux/skipped/unknown_tools"] == 2 and plan.counts["aux/pairs"] == 0
    # What the one that is shown was offered does not matter.
    assert len(planned(rows, tools={"a_1_0": None, "b_0_0": None}, **knobs).rows) == 2
