"""What the dry run knows of single keys of verl's config: their type, the range of some, and the nearest to a typo."""

import difflib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from verl.utils.tracking import Tracking

from verl_cipo.core.knob_rules import Rule, number

POSITIVE, WHOLE, SHARE, WEIGHT = number(above=0), number(1, integer=True), number(above=0, high=1), number(0)
_WORKER = "actor_rollout_ref"
RANGES: dict[str, Rule] = {
    "data.train_batch_size": WHOLE,
    "data.max_prompt_length": WHOLE,
    "data.max_response_length": WHOLE,
    f"{_WORKER}.actor.optim.lr": POSITIVE,
    f"{_WORKER}.actor.ppo_mini_batch_size": WHOLE,
    f"{_WORKER}.actor.ppo_epochs": WHOLE,
    f"{_WORKER}.actor.clip_ratio": WEIGHT,
    f"{_WORKER}.actor.clip_ratio_low": WEIGHT,
    f"{_WORKER}.actor.clip_ratio_high": WEIGHT,
    f"{_WORKER}.actor.kl_loss_coef": WEIGHT,
    f"{_WORKER}.model.lora_rank": number(0, integer=True),
    f"{_WORKER}.rollout.n": WHOLE,
    f"{_WORKER}.rollout.temperature": WEIGHT,
    f"{_WORKER}.rollout.top_p": SHARE,
    f"{_WORKER}.rollout.gpu_memory_utilization": SHARE,
    f"{_WORKER}.rollout.tensor_model_parallel_size": WHOLE,
    f"{_WORKER}.rollout.val_kwargs.n": WHOLE,
    f"{_WORKER}.rollout.val_kwargs.temperature": WEIGHT,
    f"{_WORKER}.rollout.val_kwargs.top_p": SHARE,
    "trainer.nnodes": WHOLE,
    "trainer.n_gpus_per_node": WHOLE,
    "trainer.total_training_steps": number(1, integer=True, null=True),
}
"""Key -> what verl can use, of those that are often set; verl finds out in its workers, or never."""
OF_LOGGER = {name: name for name in ("wandb", "mlflow", "tensorboard", "swanlab", "clearml", "trackio")}
"""Logger of verl -> the module that it needs."""
COMPOSED = re.compile(r"Could not override '(?P<key>[^']+)'|full_key: (?P<full>\S+)")
"""What Hydra says of a key that the config does not have."""


class ValuesError(ValueError):
    """Values that verl cannot use; a line names each key, its value and what is expected."""


def flat(config: DictConfig) -> dict[str, Any]:
    """Key with dots -> value, a list or an empty mapping among them; one that follows from another as it is written."""
    found: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                walk(inner, f"{path}.{key}" if path else str(key))
        else:
            found[path] = value

    walk(OmegaConf.to_container(config), "")
    return found


TEXT_TOO = {"algorithm.rollout_correction.rollout_is_threshold"}
"""Keys whose default is a number, and which take a text as well: here both bounds, as .5_5."""


def check_values(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Compare each value's type with that of verl's default, and with :data:`RANGES`.

    Args:
        values: :func:`flat` of the config; a value that follows from another is left to that one.
        defaults: that of verl's own.

    Raises:
        ValuesError: names every value that cannot be used.
    """
    wrong = []
    for key, value in values.items():
        if isinstance(value, str) and ("${" in value or key in TEXT_TOO):
            continue
        if key in RANGES:
            allowed, fits = RANGES[key].allowed, _fits(RANGES[key], value)
        else:
            allowed, fits = _of_the_type(value, defaults.get(key))
        if not fits:
            wrong.append(f"{key}={value}: expected {allowed}")
    wrong += _unknown_loggers(values["trainer.logger"])
    if wrong:
        raise ValuesError("\n".join(wrong))


def missing_loggers(loggers: str | Sequence[str]) -> list[str]:
    """Those of ``trainer.logger`` whose packages are not installed on this machine."""
    names = [loggers] if isinstance(loggers, str) else loggers
    return [name for name in names if name in OF_LOGGER and importlib.util.find_spec(OF_LOGGER[name]) is None]


def misspelled(message: str, keys: Sequence[str]) -> tuple[str, str] | None:
    """The key that Hydra says, in ``message``, there is not, and the nearest of ``keys``; None where none is near."""
    match = COMPOSED.search(message)
    if match is None:
        return None
    typed = match["key"] or match["full"]
    names = difflib.get_close_matches(_last(typed), {_last(key) for key in keys}, n=5)
    places = [key for key in keys if _last(key) in names]
    if not places:
        return None
    return typed, max(places, key=lambda key: difflib.SequenceMatcher(None, typed, key).ratio())


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _fits(rule: Rule, value: Any) -> bool:
    try:
        rule.read(value)
    except ValueError:
        return False
    return True


def _of_the_type(value: Any, default: Any) -> tuple[str, bool]:
    """What may stand in the place of a default, and whether ``value`` does: verl has numbers of both kinds for one."""
    if value is None or default is None or isinstance(default, (str, list, dict)):
        return "", True
    if isinstance(default, bool):
        return "true or false", isinstance(value, bool)
    return "a number", isinstance(value, (int, float)) and not isinstance(value, bool)


def _unknown_loggers(loggers: str | Sequence[str]) -> list[str]:
    known = Tracking.supported_backend
    names = [loggers] if isinstance(loggers, str) else loggers
    return [f"trainer.logger={name}: expected some of {', '.join(known)}" for name in names if name not in known]
