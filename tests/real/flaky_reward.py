"""verl's GSM8K verifier behind a server that is away whenever it sees an answer for the first time.

With ``lost`` it is away for that share of all answers, however often it is asked.
"""

import zlib

from verl.utils.reward_score import default_compute_score

_seen = set()


def compute_score(data_source, solution_str, ground_truth, extra_info=None, *, lost=0.0, **kwargs):
    answer = (solution_str, ground_truth)
    if answer not in _seen or zlib.crc32(repr(answer).encode()) < lost * 2**32:
        _seen.add(answer)
        raise ConnectionError("the verifier is away")
    return default_compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs)
