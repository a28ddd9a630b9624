"""Hydra configs; a package, since Hydra resolves pkg:// through it."""
