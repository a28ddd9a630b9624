"""verl's GSM8K verifier behind a server that is away whenever it sees an answer for the first time."""

from verl.utils.reward_score import default_compute_score

_seen = set()


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    answer = (solution_str, ground_truth)
    if answer not in _seen:
        _seen.add(answer)
        raise ConnectionError("the verifier is away")
    return default_compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs)
