"""Calendar and clock: days of the week, and times of day."""

from __future__ import annotations

from datetime import datetime, timedelta
from random import Random

from phikit.synth.arithmetic import equation
from phikit.synth.exercise import DatasetType, Exercise, decline
from phikit.synth.words import people

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_EVENTS = ("film", "class", "game", "train ride", "meeting", "concert", "walk", "lesson")


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}{'' if number == 1 else 's'}"


def _weekday(rng: Random, difficulty: int) -> Exercise:
    """Which day is it in so many days?"""
    today = rng.randrange(7)
    days = rng.randint(2, (6, 13, 27, 60, 99)[difficulty - 1])
    back = difficulty >= 2 and rng.random() < 0.4
    weeks, rest = divmod(days, 7)
    count = -rest if back else rest
    answer = _DAYS[(today + count) % 7]
    word = "back from" if back else "after"
    walk = [_DAYS[(today + (-i if back else i)) % 7] for i in range(rest + 1)]
    steps = []
    if weeks:
        steps.append(f"{days} is {_count(weeks, 'week')} and {_count(rest, 'day')}.")
    if rest:
        steps.append(f"{rest} {word} {_DAYS[today]}: {', '.join(walk[1:])}.")
    else:
        steps.append(f"Whole weeks end on {_DAYS[today]}.")
    if back:
        question = rng.choice(
            (
                f"Today is {_DAYS[today]}. Which day was it {days} days ago?",
                f"Which day comes {days} days before {_DAYS[today]}?",
            )
        )
    else:
        question = rng.choice(
            (
                f"Today is {_DAYS[today]}. Which day is it in {days} days?",
                f"Which day comes {days} days after {_DAYS[today]}?",
            )
        )
    thought = list(steps)
    if weeks:
        thought.insert(0, f"7 * {weeks} = {7 * weeks}. {equation(days, '-', 7 * weeks)} days rest.")
    thought[-1:] = [f"0: {walk[0]}", *(f"{i}: {day}" for i, day in enumerate(walk) if i)]
    return Exercise(
        question=question,
        steps=tuple(steps),
        answer=answer,
        verifier="exact",
        thought=tuple(thought),
        wrong=tuple(rng.sample([d for d in _DAYS if d != answer], 3)),
    )


def _clock(rng: Random, difficulty: int) -> Exercise:
    """When does something end that starts then and lasts so long?"""
    step = (15, 5, 5, 1, 1)[difficulty - 1]
    hour, minute = rng.randint(6, 19), rng.randrange(0, 60, step)
    lasts = rng.randrange(step, (60, 60, 120, 180, 240)[difficulty - 1], step)
    start = datetime(2000, 1, 1, hour, minute)
    end = start + timedelta(minutes=lasts)
    answer = f"{end:%H:%M}"
    total = minute + lasts
    hours, left = divmod(total, 60)
    steps = [f"Minutes: {equation(minute, '+', lasts)}."]
    if hours:
        steps.append(
            f"That is {_count(hours, 'hour')} and {_count(left, 'minute')}: "
            f"{equation(hour, '+', hours)}."
        )
    steps.append(f"It ends at {answer}.")
    event, duration = rng.choice(_EVENTS), _count(lasts, "minute")
    question = rng.choice(
        (
            f"A {event} starts at {start:%H:%M} and lasts {duration}. When does it end?",
            f"It is {start:%H:%M}. What time is it in {duration}?",
        )
    )
    wrong = [f"{end + timedelta(minutes=d):%H:%M}" for d in (60, 10, -60)]
    return Exercise(
        question=question, steps=tuple(steps), answer=answer, verifier="exact", wrong=tuple(wrong)
    )


def write(rng: Random, difficulty: int) -> Exercise:
    return rng.choice((_weekday, _clock, _clock))(rng, difficulty)


def unanswerable(rng: Random, difficulty: int) -> Exercise:
    event = rng.choice(_EVENTS)
    (who,) = people(rng, 1)
    minutes = rng.randrange(5, 30 * difficulty + 30, 5)
    hour = rng.randint(6, 19)
    if rng.random() < 0.5:
        question = f"{who.name}'s {event} lasts {minutes} minutes. When does it end?"
        return decline(question, f"when the {event} starts")
    question = f"{who.name}'s {event} starts at {hour:02}:{minutes % 60:02}. When does it end?"
    return decline(question, f"how long the {event} lasts")


TYPE = DatasetType(
    name="calendar",
    skill="counting days of the week and minutes past the hour",
    write=write,
    unanswerable=unanswerable,
    dial="up to 6, 13, 27, 60, 99 days; minutes in steps of 15, 5, 5, 1, 1 up to 4 hours",
)
