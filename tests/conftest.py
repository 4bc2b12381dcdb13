"""What holds for every test: how Hypothesis looks for counterexamples."""

import os

from hypothesis import HealthCheck, settings

# A busy machine must not fail a property: pytest's own time limit is enough. Under CI the examples
# are the same every time, so that a red build is the change's own doing.
settings.register_profile(
    "phikit",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("phikit")
