"""Checks of arguments: an error names the argument, what was given and what is accepted."""


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
