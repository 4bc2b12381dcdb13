from hypothesis import settings

# a busy machine must not fail a property: pytest's own time limit is enough
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
