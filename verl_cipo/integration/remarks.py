"""What a run will do that its settings do not say at a glance: told once, in the driver, before it starts."""

from omegaconf import DictConfig

from verl_cipo.core.config import ROOT, CIPOConfig


def announce(config: DictConfig, cipo: CIPOConfig) -> None:
    """What the second turn adds to a validation."""
    trainer = config.trainer
    if cipo.val_corrections > 0 and (trainer.val_before_train or trainer.test_freq > 0 or trainer.val_only):
        print(
            f"[verl_cipo] {ROOT}.val_corrections={cipo.val_corrections}: a validation samples "
            f"{1 + cipo.val_corrections} times as many answers as without; set it to 0 for none of them"
        )
