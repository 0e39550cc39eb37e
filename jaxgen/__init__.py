"""jaxgen: deep generative models in JAX and Flax.

Import what you need, such as `from jaxgen.losses import diffusion`; this module imports nothing
until it is asked for `jaxgen.open_run`, which opens a trained run.
"""

import importlib

TYPE_CHECKING = False  # as typing's, whose import would take longer than all of this
if TYPE_CHECKING:
    from jaxgen.training.runs import open_run as open_run

__version__ = "0.1.0"
_PLACES = {"open_run": "jaxgen.training.runs"}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'jaxgen' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
