"""CIPO on verl's V0 trainer, `trainer.use_v1=False`."""
