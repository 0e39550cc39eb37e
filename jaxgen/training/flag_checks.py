"""Whether the flags of a run ask for what can be done, before anything is trained or written."""

from jaxgen.training.config import RunConfig
from jaxgen.training.experiment import Experiment
from jaxgen.training.measure import check_measurable
from jaxgen.training.profile import check_profile
from jaxgen.training.step import max_repeats
from jaxgen.training.strategies import JitStrategy
from jaxgen.training.trackers import check_installed


def check_flags(experiment: Experiment, config: RunConfig, strategy: JitStrategy) -> None:
    """Checks that flags ask for what can be done: the batch, measurements, writers, a profile.

    Args:
        experiment: Experiment that is trained.
        config: Flags of the run.
        strategy: Strategy whose devices share the batch.

    Raises:
        ValueError: If one does not.
    """
    check_batch(experiment, config, strategy)
    check_measurable(experiment, config)
    check_installed(config.writers)
    check_profile(config)


def check_batch(experiment: Experiment, config: RunConfig, strategy: JitStrategy) -> None:
    """Checks that the batch can be split by devices, micro-batches and repeated updates.

    Args:
        experiment: Experiment whose family has the repeated updates.
        config: Flags of the run.
        strategy: Strategy whose devices share the batch.

    Raises:
        ValueError: If the batch size is not a multiple of their product.
    """
    parts = strategy.num_devices * config.accumulate * max_repeats(experiment.family)
    if config.batch_size % parts:
        raise ValueError(
            f"--batch-size must be a multiple of {parts} ({strategy.num_devices} devices x "
            f"{config.accumulate} micro-batches x {max_repeats(experiment.family)} updates a "
            f"phase), got {config.batch_size}"
        )
