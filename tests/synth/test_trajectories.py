"""An agent in the stockroom: judged by what it did, stored call by call."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from phikit.records import Sample, read_records
from phikit.stage import Context
from phikit.synth import trajectories
from phikit.synth.replies import ReplyStore, Request
from phikit.synth.stockroom import SHELVES, Stockroom
from phikit.synth.stored_teacher import Answer, Budget, StoredTeacher


class Worker(StoredTeacher):
    """Looks at every shelf, then does the task; forgets shelf D when it is `careless`."""

    careless = False

    async def _generate(self, request: Request, attempt: int) -> Answer:
        self.calls += 1
        return Answer(json.dumps(self._next([m["content"] for m in request.messages])), 9, 9)

    def _next(self, said: list[str]) -> dict:
        task, done = said[1], [json.loads(c) for c in said[2::2]]
        shelves = SHELVES[:3] if self.careless else SHELVES
        if len(done) < len(shelves):
            return {"tool": "look", "shelf": shelves[len(done)]}
        seen = {s: json.loads(said[3 + 2 * i][len("Result: ") :]) for i, s in enumerate(shelves)}
        moves = done[len(shelves) :]
        if one := re.match(r"Move (\d+) (\w+(?: \w+)*) from shelf A to shelf (\w)", task):
            thing = next(t for t in seen["A"] if t.startswith(one[2]))
            move = {"tool": "move", "thing": thing, "count": int(one[1]), "from": "A", "to": one[3]}
            return {"tool": "finish", "count": 0} if moves else move
        thing = re.match(r"(?:How many|Put all) (.+?) (?:are on|of all)", task)[1]  # type: ignore
        total = sum(on.get(thing, 0) for on in seen.values())
        todo = [s for s in "ABC" if thing in seen[s]] if task.startswith("Put") else []
        if len(moves) < len(todo):
            shelf = todo[len(moves)]
            return {"tool": "move", "thing": thing, "count": seen[shelf][thing], "from": shelf,
                    "to": "D"}  # fmt: skip
        return {"tool": "finish", "count": total}


@pytest.mark.parametrize("careless", [False, True])
def test_what_does_its_task_is_kept(
    careless: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Worker] = []

    def give(config: object, inputs: object, store: ReplyStore, seed: int) -> Worker:
        made.append(Worker("worker", Budget(), store))
        made[-1].careless = careless
        return made[-1]

    monkeypatch.setattr(trajectories, "teacher_of", give)
    config = trajectories.TrajectoriesConfig(count=60)
    summary = trajectories.run_trajectories(Context(tmp_path), config, {})
    kept = read_records(tmp_path / "samples.parquet", Sample)
    assert len(kept) == summary["accepted"]
    if not careless:
        assert len(kept) == 60 and all(s.verdicts[0].passed for s in kept)
        assert all(s.messages[-1]["role"] == "assistant" for s in kept)
        assert all(len(s.parents) == s.meta["calls"] >= 5 for s in kept)
    else:
        assert 0 < len(kept) < 50 and sum(summary["rejected"].values()) == 60 - len(kept)
    trajectories.run_trajectories(Context(tmp_path), config, {})
    assert made[1].calls == 0


def test_the_room_refuses_what_cannot_be_and_judges_by_the_shelves() -> None:
    room = Stockroom({s: {} for s in SHELVES} | {"A": {"pens": 2}}, "", {}, None)
    for call, answer in (
        ({"tool": "look", "shelf": "Z"}, "error"),
        ({"tool": "look", "shelf": "A"}, '{"pens": 2}'),
        ({"tool": "move", "thing": "pens", "count": 3, "from": "A", "to": "B"}, "error"),
        ({"tool": "move", "thing": "pens", "count": -1, "from": "A", "to": "B"}, "error"),
        ({"tool": "move", "thing": "pens", "count": 2, "from": "A", "to": "A"}, "error"),
        ({"tool": "dance"}, "error"),
        ({"tool": "move", "thing": "pens", "count": 2, "from": "A", "to": "B"}, "moved"),
    ):
        assert room.call(call).startswith(answer)
    assert room.shelves == {"A": {}, "B": {"pens": 2}, "C": {}, "D": {}}
    assert room.judge() == (False, "the task was not finished")
    rooms = [Stockroom.drawn(Random(i)) for i in range(60)]
    assert len(Counter(r.task.split()[0] for r in rooms)) == 3
    for drawn in rooms:
        drawn.finished = drawn.asked or 0
        assert drawn.judge()[0] == (drawn.shelves == drawn.goal)
