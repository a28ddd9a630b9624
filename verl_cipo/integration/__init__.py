"""All that touches verl: hooks, settings and checks here, the stations of a batch in the folders."""


class ChangedSeamError(RuntimeError):
    """What is hooked into is not what the hook was written for."""
