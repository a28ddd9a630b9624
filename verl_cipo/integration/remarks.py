"""What the driver says once of settings that work and may surprise."""

from omegaconf import DictConfig

from verl_cipo.core.config import ROOT, CIPOConfig
from verl_cipo.integration.group_filter import filter_metric


def announce(config: DictConfig, cipo: CIPOConfig, *, validation: bool = True) -> None:
    """What the second turn adds to a validation, and what a group filter takes from budget=auto.

    validation: False where the first is said elsewhere.
    """
    trainer = config.trainer
    if (
        validation
        and cipo.val_corrections > 0
        and (trainer.val_before_train or trainer.test_freq > 0 or trainer.val_only)
    ):
        print(
            f"[verl_cipo] {ROOT}.val_corrections={cipo.val_corrections}: a validation samples "
            f"{1 + cipo.val_corrections} times as many answers as without second turns; set it to 0 to turn them off"
        )
    if cipo.moves_budget and cipo.keep_all_wrong == 0 and filter_metric(config) is not None:
        print(
            f"[verl_cipo] {ROOT}.budget=auto with algorithm.filter_groups.enable=true: it corrects where no attempt is "
            "right, and of these prompts those are evicted whose attempts are all alike. So nearly all its sessions "
            f"become further attempts; set {ROOT}.keep_all_wrong=0.25 to keep some for corrections, or "
            f"{ROOT}.budget=fixed"
        )
