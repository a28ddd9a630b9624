"""The algorithm of CIPO: pure functions and small classes on torch and numpy, without verl."""

from verl_cipo.core.advantage import (
    BASE,
    CORRECTION,
    LOSS_AGG_MODES,
    PADDING,
    Rows,
    group_relative,
    stream_scales,
    two_stream_advantage,
)
from verl_cipo.core.anchors import AnchorSelector, Attempt, Group, anchor_budget, medium, select_anchors
from verl_cipo.core.config import CIPOConfig, CIPOConfigError, PromptConfig, describe
from verl_cipo.core.metrics import METRICS, batch_metrics, check_names
from verl_cipo.core.prompts import SKIP_REASONS, CorrectionPrompt, load_template, render, strip_thinking
from verl_cipo.core.replay import RhoState, update_rho
from verl_cipo.core.shaping import risk_penalty
from verl_cipo.core.transitions import Transitions, is_copy

__all__ = [
    "BASE",
    "CORRECTION",
    "LOSS_AGG_MODES",
    "METRICS",
    "PADDING",
    "SKIP_REASONS",
    "AnchorSelector",
    "Attempt",
    "CIPOConfig",
    "CIPOConfigError",
    "CorrectionPrompt",
    "Group",
    "PromptConfig",
    "RhoState",
    "Rows",
    "Transitions",
    "anchor_budget",
    "batch_metrics",
    "check_names",
    "describe",
    "group_relative",
    "is_copy",
    "load_template",
    "medium",
    "render",
    "risk_penalty",
    "select_anchors",
    "stream_scales",
    "strip_thinking",
    "two_stream_advantage",
    "update_rho",
]
