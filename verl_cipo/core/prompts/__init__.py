"""Correction prompts: their texts, the attempts that they show, and how these fit."""

from verl_cipo.core.prompts.correction import (
    MIN_ATTEMPT_TOKENS,
    SKIP_REASONS,
    TAIL_MARK,
    CorrectionPrompt,
    Excerpt,
    Request,
    correction_prompt,
)
from verl_cipo.core.prompts.others import ALONE, Others, Said, draw_others
from verl_cipo.core.prompts.templates import ADJACENT_TEMPLATE, TEMPLATES, fill, load_template, render, with_text
from verl_cipo.core.prompts.texts import defused, special_tokens, strip_thinking

__all__ = [
    "ADJACENT_TEMPLATE",
    "ALONE",
    "MIN_ATTEMPT_TOKENS",
    "SKIP_REASONS",
    "TAIL_MARK",
    "TEMPLATES",
    "CorrectionPrompt",
    "Excerpt",
    "Others",
    "Request",
    "Said",
    "correction_prompt",
    "defused",
    "draw_others",
    "fill",
    "load_template",
    "render",
    "special_tokens",
    "strip_thinking",
    "with_text",
]
