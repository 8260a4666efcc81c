"""How fast a deployment is asked: its ceiling, cut where it refuses, and grown again; time is passed in."""

from __future__ import annotations

from collections import deque

MINUTE_S = 60.0
CUT = 0.8
"""What a cut leaves of a rate that was refused again as soon as what had passed was kept to."""
BACK = 0.99
"""What is kept to of a rate that was refused, where as much as that had passed."""
AT_ONCE = 0.25
"""A refusal leaves at least this of a rate, however little had passed: perhaps there was little to send."""
COOL_DOWN_S = 5.0
"""Seconds after a cut in which no other follows."""
DOUBT_S = 10.0
"""Seconds after which a rate that was not refused is good, and within which refusals say that it is not."""
CHANCE = 0.02
"""Share of what was sent that may be refused by chance, beside one."""
AGAIN_S = 5.0
"""Seconds after that in which another refusal says that what had passed was too much."""
GROWTH_PER_S = 0.01
"""Share by which a rate that is used grows each second."""
MOST_GROWTH_PER_S = 0.05
"""The same, where it has grown by a quarter and was not refused."""
NEAR = 0.03
"""Within this share of a rate that was refused, it is held for a while before more is tried."""
HOLD_S = 15.0
"""Seconds for which a rate is held before more is tried, twice as long after each try that is refused ..."""
HELD_COSTS = 100
"""... and for at least so many requests: one refusal in a hundred is what looking for more may cost."""
LONGEST_HOLD_S = 300.0
"""... up to this: a try costs a refusal and the second that the gate is closed for."""
HOPE_S = 60.0
"""The longest where more was once used for a minute: a limit that the service lowered for a while comes back."""
LESS_HOPE = 0.75
"""What each try in vain leaves of the distance to what was once used."""
RISEN = 1.1
"""A rate that has grown by this beyond one that was held says that the limit rose."""
SATURATED = 0.8
"""Share of the leave that must have been used for the rate to grow."""
RAMP_S = 10.0
"""Seconds that a deployment which was away takes to its full rate."""
RAMP_FROM = 0.1
"""Share of the rate at which a ramp begins."""
MOST_DOUBTS = 1000
"""Refusals that are remembered."""
_RAMP_STEP_S = 0.1
_COSTS_A_SPAN = 3


class Rate:
    """Units a minute that may leave; `per_minute` is None while neither a ceiling nor a refusal was seen.

    A refusal cuts it once an episode, to what had passed of late: so much is allowed. Requests that were sent before
    the cut say nothing new. A rate found so is held, then a little more is tried, ever more rarely while that is
    refused; a try that is refused leads back to what was held. While what it allows is used, and nothing is refused,
    it grows to its ceiling; without a ceiling it grows on, since nobody knows where the limit is.
    """

    __slots__ = (
        "_believed", "_ceiling", "_cool_until", "_cut_at", "_doubts", "_held", "_held_until", "_hold_s", "_once",
        "_ramp_at", "_ramp_to", "_since", "_span_from", "_span_s", "_span_used", "_too_much", "per_minute",
    )  # fmt: skip

    def __init__(self, *, ceiling: float | None, span_s: float = 1.0) -> None:
        """`span_s`: over how long the service judges, and so how long a little more takes to be refused."""
        self.per_minute = ceiling
        self._span_s = span_s
        self._ceiling = ceiling
        self._cut_at = float("-inf")
        self._cool_until = float("-inf")
        self._span_from = float("-inf")
        self._span_used = 0.0
        self._ramp_at: float | None = None
        self._ramp_to = 0.0
        self._too_much = float("inf")
        self._believed = float("inf")
        self._held: float | None = None
        self._held_until = float("-inf")
        self._hold_s = max(HOLD_S, span_s)
        self._since = float("inf")
        self._doubts: deque[float] = deque(maxlen=MOST_DOUBTS)
        self._once = 0.0

    @property
    def per_window(self) -> float | None:
        """Units that a minute may hold: a cut slows down what leaves, but says nothing against what has left."""
        if self.per_minute is None:
            return self._ceiling
        believed = max(self.per_minute, self._believed)
        return believed if self._ceiling is None else min(self._ceiling, believed)

    def limit_to(self, ceiling: float, *, now: float) -> None:
        """Take another ceiling: a lower one holds at once, and a rate that was at the old one follows it up.

        What was refused before a ceiling fell is explained by that, and cuts nothing.
        """
        old, self._ceiling = self._ceiling, ceiling
        if old is not None and ceiling < old:
            self._cut_at = now
        if old is None or ceiling > old or ceiling < (self._held or 0.0):
            self._forget()
        if self._ramp_at is not None:
            self._ramp_to = ceiling
        elif self.per_minute is None or old is None:
            self.per_minute = ceiling
        else:
            self.per_minute = min(ceiling, self.per_minute * max(1.0, ceiling / old))

    def steer(self, per_minute: float) -> None:
        """Take a rate that somebody knows better than refusals tell; a ceiling and a ramp hold all the same."""
        self._forget()
        wanted = per_minute if self._ceiling is None else min(self._ceiling, per_minute)
        if self._ramp_at is None:
            self.per_minute = wanted
        else:
            self._ramp_to = wanted

    def at_ease(self, passed: float, sent: float) -> float:
        """What a refusal tells of the limit: `passed`, or less of the rate where not even the rate was sent."""
        if self.per_minute is None or sent >= SATURATED * self.per_minute:
            return passed
        return max(passed, CUT * self.per_minute)

    def cut(
        self,
        now: float,
        *,
        sent_at: float,
        cool_down_s: float,
        passed: float,
        admitted: float,
        least: float,
        lately: float = 0.0,
        certain: bool = False,
        unhinted: bool = False,
    ) -> bool:
        """Cut the rate for a refusal of a request sent at `sent_at`, unless a cut has answered it; say whether.

        `passed` is what was let in of late while the gate was open, `admitted` what was at all, units a minute.
        `least` is what the refused request cost; the rate is never below one of those a minute, or the ceiling where
        that is less. `lately` is how many requests left within `doubt_s`. One refusal of a rate that did well, and
        CHANCE of those, is taken for chance, unless it is `certain`; of one that is `unhinted`, whatever the rate did.
        """
        if sent_at < self._cut_at or now < self._cool_until:
            return False
        if self._may_be_chance(now, lately, unhinted=unhinted) and cool_down_s <= COOL_DOWN_S and not certain:
            return False
        known = max(least, passed) if self.per_minute is None else self.per_minute
        wanted = self._found(now, known, passed, admitted, least)
        self._cut_to(now, known, max(wanted, min(least, self._ceiling or least)), cool_down_s)
        return True

    def ease(self, now: float) -> bool:
        """Cut the rate because the service is overloaded, unless a cut came just before; say whether."""
        if self.per_minute is None or now < self._cool_until:
            return False
        self._held = None
        self._believed = self.per_minute
        self._since = now
        self._cut_to(now, self.per_minute, CUT * self.per_minute, 0.0)
        return True

    def _cut_to(self, now: float, known: float, wanted: float, cool_down_s: float) -> None:
        self._too_much = known
        self.per_minute = wanted
        self._ramp_at = None
        self._cut_at = now
        self._cool_until = now + max(COOL_DOWN_S, cool_down_s)
        self._begin_span(now)

    @property
    def doubt_s(self) -> float:
        """Seconds within which refusals of a rate that did well are weighed together."""
        return max(DOUBT_S, 1.5 * self._span_s)

    def _may_be_chance(self, now: float, lately: float, *, unhinted: bool) -> bool:
        """Whether refusals are no more than chance may bring, of a rate that did well, or that say not when to return.

        One that is for a limit nearly always says when to come back; so one that does not has to come again first,
        also where more is being tried, which a single refusal would end otherwise.
        """
        while self._doubts and now - self._doubts[0] > self.doubt_s:
            self._doubts.popleft()
        self._doubts.append(now)
        if self.per_minute is None or len(self._doubts) > 1 + CHANCE * lately:
            return False
        did_well = self.per_minute in {self._held, self._ceiling} and now - self._since >= DOUBT_S
        return did_well or unhinted

    def _found(self, now: float, known: float, passed: float, admitted: float, least: float) -> float:
        """The rate that a refusal of `known` leads to: what was held before, what passed, or CUT of it."""
        held, self._held = self._held, None
        if now - self._since >= HOPE_S:
            self._once = max(self._once, known if held is None else held)
        self._since = now
        shortest_s = min(LONGEST_HOLD_S, max(HOLD_S, self._span_s, HELD_COSTS * least * MINUTE_S / known))
        if held is not None and held < known <= RISEN * held:
            self._once = held + LESS_HOPE * max(0.0, self._once - held)
            longest_s = max(HOPE_S, shortest_s) if self._once > RISEN * held else LONGEST_HOLD_S
            self._hold_s = min(longest_s, 2 * self._hold_s)
            return self._hold(now, max(held, min(BACK * known, passed)))
        if held is None or known > held:
            self._hold_s = shortest_s
        if now >= self._cool_until + AGAIN_S and passed >= AT_ONCE * known:
            return self._hold(now, min(BACK * known, passed))
        self._believed = known
        return max(AT_ONCE * known, min(CUT * known, admitted))

    def _hold(self, now: float, rate: float) -> float:
        """Keep to a rate for a while."""
        self._held = self._believed = rate
        self._held_until = now + self._hold_s
        return rate

    def _forget(self) -> None:
        self._too_much = self._believed = float("inf")
        self._held = None
        self._hold_s = max(HOLD_S, self._span_s)

    def ramp(self, now: float) -> None:
        """Begin again slowly, at full rate ten seconds from now."""
        if self.per_minute is not None:
            self._ramp_at, self._ramp_to = now, self.per_minute if self._ramp_at is None else self._ramp_to
            self.per_minute = RAMP_FROM * self._ramp_to

    def tick(self, now: float) -> bool:
        """Go on with a ramp; True where the rate changed."""
        if self._ramp_at is None:
            return False
        gone = (now - self._ramp_at) / RAMP_S
        wanted = self._ramp_to * min(1.0, RAMP_FROM + (1 - RAMP_FROM) * gone)
        if gone >= 1:
            self._ramp_at = None
        elif wanted - (self.per_minute or 0.0) < self._ramp_to * _RAMP_STEP_S / RAMP_S:
            return False
        self.per_minute = wanted
        return True

    def used(self, now: float, units: float) -> bool:
        """Count what leaves; True where the rate grew because what it allows is used."""
        rate = self.per_minute
        self._since = min(self._since, now)
        if rate is None or rate == self._ceiling or self._ramp_at is not None:
            return False
        self._span_used += units
        gone_s = now - self._span_from
        # A span holds a few requests: whether one an hour uses its leave cannot be told within a second.
        if gone_s < max(1.0, _COSTS_A_SPAN * units * MINUTE_S / rate):
            return False
        saturated = self._span_used >= SATURATED * rate * gone_s / MINUTE_S
        self._begin_span(now)
        if not saturated or (self._held is not None and now < self._held_until):
            return False
        if self._held is None and (1 - NEAR) * self._too_much <= rate <= self._too_much:
            self._hold(now, rate)
            return False
        grown = rate * (1 + self._growth_per_s(rate) * gone_s)
        self.per_minute = grown if self._ceiling is None else min(self._ceiling, grown)
        return True

    def _growth_per_s(self, rate: float) -> float:
        """Carefully just above what was held; then faster, the further above."""
        if self._held is None:
            return GROWTH_PER_S
        above = rate / self._held - 1
        if above <= NEAR:
            return min(GROWTH_PER_S, NEAR / self._span_s)
        return min(MOST_GROWTH_PER_S, max(GROWTH_PER_S, above / 5))

    def _begin_span(self, now: float) -> None:
        self._span_from, self._span_used = now, 0.0
