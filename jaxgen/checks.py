"""Checks of arguments: an error names the argument, what was given and what is accepted."""

import os


def check_choice(argument: str, value: str, accepted: tuple[str, ...]) -> None:
    """Checks that an argument is one of the accepted values.

    Args:
        argument: Name of the argument, for the error.
        value: Value that was given.
        accepted: Values that are accepted.

    Raises:
        ValueError: If it is not; names the argument, the accepted values and the value.
    """
    if value not in accepted:
        raise ValueError(f"{argument} must be one of {', '.join(accepted)}, got {value!r}")


def check_memory(what: str, num_bytes: int) -> None:
    """Checks that something fits into the machine's memory, before it is asked for.

    Args:
        what: Name of it, for the error.
        num_bytes: Number of bytes that it takes.

    Raises:
        ValueError: If it takes more than the machine has.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if num_bytes > memory:
        raise ValueError(
            f"{what} would take {num_bytes / 2**30:.0f} GiB, and this machine has "
            f"{memory / 2**30:.0f} GiB of memory"
        )
