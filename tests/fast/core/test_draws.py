"""Every draw of a run comes from these lots: the values may not change, or a run could not be repeated."""

import hashlib
from collections import Counter

import numpy as np

from verl_cipo.core.anchors import Attempt, Group, ranks
from verl_cipo.core.aux_loss.pairs import draw_pairs, pair_up
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.draws import lot, origin, session_seed
from verl_cipo.core.rows import Mark, RowTable


def hashed(names: str) -> bytes:
    return hashlib.blake2b(names.encode(), digest_size=8).digest()


def test_a_lot_is_the_digest_of_the_names_between_slashes():
    assert lot(1, 3, 7).hex() == "e9b5ae975be65769"
    assert lot(1, 3, 7, 2, size=16).hex() == "d2175402ad76c117d870309551aa4556"
    assert lot(1, 3, 7, 2) == hashed("1/3/7/2")


def test_a_name_counts_as_it_is_printed():
    assert lot("1/3", "7") == lot(1, 3, 7) == lot(np.int64(1), np.str_("3"), 7)
    assert lot(True, None, "\u00e9") == hashed("True/None/\u00e9")


def test_anchors_are_drawn_by_seed_step_index_and_session():
    group = Group("u", (Attempt("u", 7, 2, True, 1.0),))
    # The second half of the digest of 1/3/7/2.
    assert [rank for rank, _ in ranks(group, seed=1, step=3)] == [(0, bytes.fromhex("d870309551aa4556"), "u", 2)]


def test_donors_are_drawn_by_seed_step_and_both_attempts():
    attempts = tuple(Attempt("u", 7, session, session > 0, 0.0) for session in range(9))
    for step in range(1, 6):
        (pair,) = pair_up([Group("u", attempts)], attempts[:1], seed=1, step=step)
        assert pair.donor.session == min(range(1, 9), key=lambda session: hashed(f"1/{step}/7/0/7/{session}"))


def test_pairs_are_drawn_by_the_configured_seed():
    """One wrong attempt of 16, or one right rollout of 16."""

    def drawn(verdict, seed):
        attempts = tuple(Attempt("u", 7, session, (session == 16) != verdict, 0.0) for session in range(17))
        (pair,) = draw_pairs([Group("u", attempts)], Counter(), config=CIPOConfig(preset="stream", seed=seed), step=3)
        return pair.donor.session if verdict else pair.anchor.session

    for verdict in (True, False):
        assert len({drawn(verdict, seed) for seed in range(1, 6)}) > 1


def test_prompts_are_ordered_by_seed_step_and_index():
    keys = [f"{uid}_0_0" for uid in "abcdefgh"]
    index = [10, 11, "x/1", 13, 14, 15, 16, "x/2"]
    nothing = np.zeros(8)
    table = RowTable.of_marks(keys, [Mark(correct=False)] * 8, index=index, scores=nothing, tokens=nothing)
    assert table.stable_order(keys, seed=2, step=5) == sorted(range(8), key=lambda i: hashed(f"2/5/{index[i]}"))


def test_seeds_of_sessions():
    assert session_seed(1, step=3, validate=False, index=7, anchor=None, session=2) == 1818587683
    assert session_seed(1, step=3, validate=True, index="x/1", anchor=0, session=2) == 1908579385


def test_an_origin_is_that_of_all_text_in_the_chat_and_of_the_data_source():
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    assert origin("a", chat) == hashed("a/system/Be brief./user/2+2?").hex() == origin("a", np.array(chat))
    parts = [{"role": "user", "content": [{"type": "image", "image": object()}, {"type": "text", "text": "2+2?"}]}]
    assert origin("a", parts) == hashed("a/user/None/2+2?").hex(), "an image prints its address"
    assert len({origin("a", chat), origin("b", chat), origin("a", chat[1:]), origin("a", parts), origin("a", [])}) == 5


def test_pairs_of_prompts_that_share_an_index_do_not_depend_on_uids():
    def donor(uids):
        groups = [
            Group(uid, (Attempt(uid, 0, 0, source != "b", 0.0, origin=source),))
            for uid, source in zip(uids, "abcd", strict=True)
        ]
        (pair,) = pair_up(groups, groups[1].attempts, seed=1, step=1)
        return pair.donor.origin

    assert {donor(uids) for uids in ("1234", "4321", "2413")} == {"c"}, "the one that follows"
