"""A trace of some steps, as `--profile START STOP` asks."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import jax

from jaxgen.training.config import RunConfig

PLACE = "profile"


def check_profile(config: RunConfig) -> None:
    """Checks that the steps of `--profile`, where it is asked for, begin before the run's end.

    Args:
        config: Flags of the run.

    Raises:
        ValueError: If they begin after the last step.
    """
    if config.profile is not None and config.profile[0] >= config.steps:
        raise ValueError(
            f"--profile must begin before the last step, {config.steps}, got "
            f"{' '.join(map(str, config.profile))}"
        )


class Profile(AbstractContextManager):
    """Traces the steps from the first to the second of `config.profile`, if there are any.

    The loop cuts its dispatches at `steps` and waits for the device there, so the trace has these
    steps alone; they compute what they would without it. Left early, it keeps what there is.

    Args:
        config: Flags of the run, in whose directory `profile/` the trace is written.
        note: Function that prints a message.

    Attributes:
        steps: Steps at which tracing begins and ends; () for none.
    """

    def __init__(self, config: RunConfig, note: Callable[[str], None]):
        self.steps: tuple[int, ...] = config.profile or ()
        self.place = Path(config.run_dir) / PLACE
        self.note = note
        self.begun: int | None = None

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.begun is not None:
            jax.profiler.stop_trace()
            self.note(f"the steps from {self.begun} on are profiled in {self.place}")
            self.begun = None

    def resume(self, step: int) -> None:
        """Says so where a run goes on behind the first step, and there is no trace yet.

        Args:
            step: Number of steps done.
        """
        if self.steps and step > self.steps[0] and not self.place.exists():
            self.note(f"nothing is profiled: step {self.steps[0]} is behind, at {step}")

    def begin(self, step: int) -> None:
        """Begins the trace at its first step.

        Args:
            step: Number of steps that the device has finished.
        """
        if self.steps and step == self.steps[0]:
            jax.profiler.start_trace(str(self.place))
            self.begun = step

    def end(self, step: int) -> None:
        """Ends the trace at its last step, and says where it is.

        Args:
            step: Number of steps that the device has finished.
        """
        if self.begun is not None and step == self.steps[1]:
            jax.profiler.stop_trace()
            self.note(f"steps {self.begun} to {step} are profiled in {self.place}")
            self.begun = None
