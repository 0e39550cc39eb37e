"""How fast a run goes, and so how many steps to dispatch at once."""

import math
import time

import jax

DISPATCH_SECONDS = 0.25  # long enough to hide the host's work, short enough to stop on a signal
RECENT_SECONDS = 5.0  # a dispatch alone says little: the short one before an event, most of all


class Pace:
    """The number of steps to dispatch at once, from the measured rate."""

    def __init__(self, most: int):
        self.most, self.num_steps = most, 1
        self.step, self.time = 0, 0.0
        self.recent = (0.0, 0.0)  # steps and seconds, the older the less
        self.counted = (0.0, 0.0)  # steps and seconds since the last average

    @property
    def rate(self) -> float:
        """Steps a second in the last few seconds, without events; 0 where it is unknown."""
        steps, seconds = self.recent
        return steps / seconds if steps else 0.0

    def start(self, step: int) -> None:
        """Start counting: no dispatch is pending, and the next reading does not end an interval."""
        self.step, self.time = step, 0.0

    def finished(self, step: int) -> float:
        """The device has finished up to `step`: the recent rate, in steps/s."""
        now, done = time.perf_counter(), step - self.step
        if self.time and done > 0:
            seconds = now - self.time
            fade = math.exp(-seconds / RECENT_SECONDS)
            self.recent = (fade * self.recent[0] + done, fade * self.recent[1] + seconds)
            self.counted = (self.counted[0] + done, self.counted[1] + seconds)
            aim = int(self.rate * DISPATCH_SECONDS)
            if jax.process_count() == 1:  # all processes must dispatch the same steps
                self.num_steps = max(1, min(self.most, 2 * self.num_steps, aim))
        self.step, self.time = step, now
        return self.rate

    def average(self) -> float:
        """The rate since the last call of this method, without events; 0 where it is unknown."""
        steps, seconds = self.counted
        self.counted = (0.0, 0.0)
        return steps / seconds if steps else self.rate
