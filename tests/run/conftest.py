import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

RECIPE = """\
name: toy
about: three small stages
seed: 3
threads: 1
stages:
  - name: one
    verb: toy.count
    config:
      steps: 4
  - name: two
    verb: toy.count
    config: {steps: 3, start: 9}
  - name: sum
    verb: toy.add
    inputs: {first: one, more: [two]}
    config:
      plus: 1
  - name: twice
    verb: toy.add
    inputs:
      first: sum
      more: [sum, two]
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(RECIPE)
    return path
