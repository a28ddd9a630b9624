from hypothesis import settings

# The machine may be busy with rollouts: a slow example is no failure.
settings.register_profile("core", deadline=None)
settings.load_profile("core")
