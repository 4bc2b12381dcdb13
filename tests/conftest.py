"""For every test: how Hypothesis looks for counterexamples, and until when slow ones begin."""

import os
import time

import pytest
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

# A test that asks for a Ray cluster of its own must not join the one that another test has running
# at that moment, and stops when it likes: without this, Ray looks for one on the machine.
os.environ["RAY_ADDRESS"] = "local"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slow-until", type=float, default=0, metavar="SECONDS",
        help="skip slow tests that would begin after this time (seconds since 1970); 0: none",
    )  # fmt: skip


def pytest_runtest_setup(item: pytest.Item) -> None:
    until = item.config.getoption("--slow-until")
    if until and time.time() > until and item.get_closest_marker("slow"):
        pytest.skip("slow, and the time for slow tests is over")
