import itertools

import pytest
import torch

from verl_cipo.core import risk_penalty


def test_only_a_correction_that_breaks_a_correct_anchor_is_penalised():
    cases = list(itertools.product([False, True], repeat=3))
    correct, anchor, correction = (torch.tensor(column) for column in zip(*cases, strict=True))
    penalty = risk_penalty(correct, anchor, correction, lambda_risk=0.7)
    # Of the 8 cases only (correct, anchor_correct, is_correction) = (False, True, True) costs.
    expected = torch.tensor([-0.7 if case == (False, True, True) else 0.0 for case in cases])
    assert torch.equal(penalty, expected)
    assert penalty.dtype == torch.float32


def test_inputs_are_left_as_they_are():
    given = [torch.tensor([False, True]), torch.tensor([True, True]), torch.tensor([True, True])]
    before = [tensor.clone() for tensor in given]
    risk_penalty(*given, lambda_risk=1.0)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


def test_no_risk_no_penalty():
    flags = torch.ones(3, dtype=torch.bool)
    assert torch.equal(risk_penalty(~flags, flags, flags, lambda_risk=0.0), torch.zeros(3))


def test_shapes_and_dtypes_are_checked():
    flags = torch.ones(3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"\(2,\)"):
        risk_penalty(flags, flags[:2], flags, lambda_risk=1.0)
    with pytest.raises(ValueError, match=r"\(1, 3\)"):
        risk_penalty(flags[None], flags[None], flags[None], lambda_risk=1.0)
    with pytest.raises(TypeError, match="torch.float32"):
        risk_penalty(flags, flags.float(), flags, lambda_risk=1.0)
