"""jaxgen: deep generative models in JAX and Flax.

Import what you need, such as `from jaxgen.losses import diffusion`; this module imports nothing.
"""

__version__ = "0.1.0"
