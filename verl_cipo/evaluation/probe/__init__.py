"""What a checkpoint makes of its own attempts before any training, and the options that follow: `verl_cipo.probe`."""
