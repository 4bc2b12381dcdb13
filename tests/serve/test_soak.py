"""A short form of the soak (benchmarks/soak.py): a few hundred mixed requests."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.mark.slow
def test_mixed_requests_leave_nothing_behind():
    command = [sys.executable, str(SOAK), "--requests", "300", "--clients", "8", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert len(rows) == 5 and all(row["met"] for row in rows), done.stdout
    assert "finished answers: " in done.stdout and done.returncode == 0
