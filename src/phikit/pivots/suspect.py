"""One token under suspicion of being a pivot, from the first look to the confirmed pair.

    EXPLORE ──shown below the gap──▶ CLEARED
       └─estimate beyond it─▶ CONFIRM ──not shown, or shown below──▶ REFUTED
                                 └─shown beyond, on fresh rollouts─▶ MEASURE ─▶ PAIRED | UNPAIRED

Each step uses only rollouts drawn after the step was entered, so what made a token look good is
never counted again for it. The estimate of Δp comes from one round whose size was fixed before it
was drawn, hence it is unbiased; its interval from everything since CONFIRM was entered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from phikit.pivots.config import SearchConfig
from phikit.pivots.evidence import Arm, Contrast, normal_log_e_inside
from phikit.pivots.path import Branch, Path


class State(StrEnum):
    """What is still to be found out about a suspect, or what came out."""

    EXPLORE = "explore"
    CLEARED = "cleared"
    CONFIRM = "confirm"
    REFUTED = "refuted"
    MEASURE = "measure"
    PAIRED = "paired"
    UNPAIRED = "unpaired"
    ABANDONED = "abandoned"


OPEN = (State.EXPLORE, State.CONFIRM, State.MEASURE)
PIVOTAL = (State.MEASURE, State.PAIRED, State.UNPAIRED)


@dataclass
class Wants:
    """What a question would like to see next: how many rollouts shall arrive at each position,
    those that pass through on their way from an earlier one included, and how many shall be begun
    with a given token there."""

    arrive: dict[int, int] = field(default_factory=dict)
    forced: dict[tuple[int, int], int] = field(default_factory=dict)

    def at(self, position: int, n: float) -> None:
        """Asks for `n` walks that arrive at the position; the largest demand counts."""
        if n > 0:
            self.arrive[position] = max(self.arrive.get(position, 0), math.ceil(n))

    def after(self, position: int, token: int, n: int) -> None:
        """Asks for `n` completions after this token; the largest demand counts."""
        if n > 0:
            key = (position, token)
            self.forced[key] = max(self.forced.get(key, 0), n)

    def arms(self, path: Path, low: int, high: int, through: float, astray: float) -> None:
        """That many rollouts through [low, high), and astray in it."""
        if high < len(path):
            self.at(high, through)
        self.at(low, astray / (1.0 - path.through(low, high)))


def sizes(path: Path, high: int, contrast: Contrast) -> tuple[float, float]:
    """Rollouts (through, astray) of a stretch's contrast; infinite where p is known."""
    if high == len(path):
        return math.inf, contrast.arms[0].n
    return contrast.arms[0].n, contrast.arms[1].n


@dataclass
class Suspect:
    """The token at `position` of a solution.

    Attributes:
        log_e: the log e-value against |Δp| ≤ gap, once CONFIRM was entered.
        sign: +1 for a token that helps, -1 for one that harms; final once confirmed.
        explored: the last round whose rollouts made it a candidate.
        confirmed: the last round whose rollouts confirmed it.
        tried: the alternatives tried for its pair, each with the last round whose rollouts led to
            it; the last one is under test or accepted.
    """

    path: Path
    position: int
    config: SearchConfig
    state: State = State.EXPLORE
    log_e: float = -math.inf
    sign: float = 1.0
    explored: int = -1
    confirmed: int = -1
    tried: list[tuple[Branch, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path.mark(self.position, self.position + 1)

    @property
    def tested(self) -> bool:
        """It counts among the hypotheses over which false discoveries are controlled."""
        return self.explored >= 0

    def advance(self, last_round: int, target: float) -> None:
        """Draws every conclusion that the rollouts up to `last_round` allow.

        Args:
            target: the log e-value that confirms.
        """
        if self.state is State.EXPLORE:
            self._explore(last_round)
        elif self.state is State.CONFIRM:
            self._confirm(last_round, target)
        elif self.state is State.MEASURE:
            self._measure(last_round)

    def wants(self, wants: Wants, target: float) -> None:
        """Adds the samples that its next decision needs; `target`: the log evidence to confirm."""
        if self.state is State.EXPLORE:
            self._want_explored(wants)
        elif self.state is State.CONFIRM:
            contrast = self.fresh()
            n = min(sizes(self.path, self.position + 1, contrast))
            needed = n * target / self.log_e if self.log_e > 0.5 else math.inf
            self._grow(wants, contrast, max(needed * 1.1 - n, self.config.first))
        elif self.state is State.MEASURE:
            self._want_measured(wants)

    def abandon(self) -> None:
        """The budget is spent: a suspect that is not decided stays undecided."""
        if self.state is State.MEASURE and self.measurable:
            self.state = State.UNPAIRED
        elif self.state in OPEN:
            self.state = State.ABANDONED

    # --- the three steps -------------------------------------------------------------------------

    def _explore(self, last_round: int) -> None:
        config = self.config
        astray = self._contrast().arms[-1].n
        if astray < config.first:
            return
        delta, variance = self.path.change(self.position, self.position + 1)
        beyond = abs(delta) - config.gap
        inside = normal_log_e_inside(delta, variance, config.gap + config.margin)
        spent = astray >= config.explore_max
        if inside >= self._dropping or (spent and beyond < 0.0):
            self.state = State.CLEARED
        elif spent or beyond >= math.sqrt(variance):
            self.state, self.explored = State.CONFIRM, last_round

    def _confirm(self, last_round: int, target: float) -> None:
        contrast = self.fresh()
        n = min(sizes(self.path, self.position + 1, contrast))
        if n == 0:
            return
        self.log_e = contrast.log_e_outside(self.config.gap)
        inside = contrast.log_e_inside(self.config.gap + self.config.margin)
        promising = n < self.config.max_samples // 4 or self.log_e > 0.0
        if self.log_e >= target:
            self.state, self.confirmed = State.MEASURE, last_round
            self.sign = math.copysign(1.0, contrast.estimate)
            self._next_alternative(last_round)
        elif inside >= self._dropping or n >= self.config.max_samples or not promising:
            self.state = State.REFUTED

    def _measure(self, last_round: int) -> None:
        if not self.measurable:
            return
        if not self.tried:
            self.state = State.UNPAIRED
        elif self._paired():
            self.state = State.PAIRED
        elif self._given_up() and not self._next_alternative(last_round):
            self.state = State.UNPAIRED
        elif self.tried[-1][0].final:  # it has just been picked
            self.state = State.PAIRED

    def _paired(self) -> bool:
        """The alternative is shown to lie on the other side of the prefix, and is reported there:
        its own estimate might lie on the wrong side by chance."""
        if self.tried[-1][0].final:
            return True
        before = self.p_after() - self.measured().estimate
        return (
            self._shown_apart()
            and self.sign * (before - self.attempted(*self.tried[-1]).mean) > 0.0
        )

    def _shown_apart(self) -> bool:
        needed = math.log(self.config.alternatives / self.config.error)
        return self.pair_contrast().log_e_above(0.0) >= needed

    def _given_up(self) -> bool:
        contrast = self.pair_contrast()
        wrong_side = contrast.flipped().log_e_above(0.0) >= self._dropping
        spent = contrast.arms[0].n >= self.config.max_samples
        return wrong_side or spent or self._shown_apart()

    # --- evidence --------------------------------------------------------------------------------

    def _contrast(self) -> Contrast:
        return self.path.contrast(self.position, self.position + 1)

    def fresh(self) -> Contrast:
        """Δp from everything since the token became a candidate: for its test and interval."""
        return self.path.contrast(
            self.position, self.position + 1, since=self.explored, informed=True
        )

    def measured(self) -> Contrast:
        """Δp from the round that was drawn to measure it: for its unbiased estimate."""
        return self.path.contrast(
            self.position, self.position + 1, since=self.confirmed, until=self._measured_until()
        )

    def p_after(self) -> float:
        """p(success) after the token, from the same round."""
        if self.position + 1 == len(self.path):
            return float(self.path.passed)
        return self.measured().arms[0].mean

    def attempted(self, branch: Branch, since: int) -> Arm:
        """The rollouts drawn first for an alternative: for its own estimate. Those that led to it,
        where none were drawn."""
        first = self.path.took(self.position, branch.token, since, since + 1)
        return first if first.n and not branch.final else branch.arm

    @property
    def _dropping(self) -> float:
        """The log e-value at which a hope is given up."""
        return -math.log(self.config.miss)

    @property
    def measurable(self) -> bool:
        """Both arms were seen since the token was confirmed."""
        contrast = self.path.contrast(self.position, self.position + 1, since=self.confirmed)
        return min(sizes(self.path, self.position + 1, contrast)) > 0

    def _measured_until(self) -> int:
        """The first round after confirmation by which both arms were seen: the very next one, but
        for a freak of chance."""
        last = int(self.path.table[:, 4].max())
        for until in range(self.confirmed + 1, last):
            contrast = self.path.contrast(
                self.position, self.position + 1, since=self.confirmed, until=until
            )
            if min(sizes(self.path, self.position + 1, contrast)) > 0:
                return until
        return last

    def pair_contrast(self) -> Contrast:
        """How far the alternative lies from p(prefix), on the side away from the token."""
        branch, since = self.tried[-1]
        contrast = self.path.against(self.position, branch.token, branch.probability, since)
        return contrast.flipped() if self.sign > 0 else contrast

    # --- what to draw ----------------------------------------------------------------------------

    def _want_explored(self, wants: Wants) -> None:
        """More rollouts that go astray here; those that stay serve the tokens after it. If what
        comes after is known less well than that, some from there, too."""
        path, i = self.path, self.position
        astray = self._contrast().arms[-1]
        more = max(self.config.first, astray.n / 2)
        own = astray.smooth * (1.0 - astray.smooth) / (astray.n + 1)
        later = path.chain[i + 1][1]
        wants.arms(path, i, i + 1, more if later > own else 0, more)

    def _grow(self, wants: Wants, contrast: Contrast, most: float) -> None:
        """Brings both arms to the same size, half as large again."""
        through, astray = sizes(self.path, self.position + 1, contrast)
        n = min(through, astray)
        goal = n + min(max(self.config.first, n * 0.5), most)
        wants.arms(self.path, self.position, self.position + 1, goal - through, goal - astray)

    def _want_measured(self, wants: Wants) -> None:
        n = self.config.measure
        if not self.measurable:
            wants.arms(self.path, self.position, self.position + 1, n, n)
        if self.tried and not self.tried[-1][0].final:
            branch, since = self.tried[-1]
            took, *others = self.pair_contrast().arms
            n = max(n, took.n // 2)
            wants.after(self.position, branch.token, n)
            if since > self.confirmed and sum(arm.n for arm in others) < took.n:
                wants.arms(self.path, self.position, self.position + 1, n, n)

    def _next_alternative(self, last_round: int) -> bool:
        """Picks the alternative that promises most on the other side of the prefix.

        One that ends the answer has that answer's verdict, so nothing is to be drawn: p is 0 or 1
        after it, and the prefix, which leads to both sides, lies in between.
        """
        tried = {b.token for b, _ in self.tried}
        here = self.path.reached(self.position)

        def promise(branch: Branch) -> float:
            apart = here.smooth - branch.arm.mean if branch.final else here.mean - branch.arm.smooth
            return self.sign * apart * math.sqrt(branch.probability)

        spent = len(tried) >= self.config.alternatives
        open_to = [
            b for b in self.path.branches(self.position)
            if b.token not in tried and (b.final or not spent)
        ]  # fmt: skip
        best = max(open_to, key=lambda b: (promise(b), -b.token), default=None)
        if best is None or promise(best) <= 0.0:
            return False
        self.tried.append((best, last_round))
        return True
