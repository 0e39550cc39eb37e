"""jaxgen: deep generative models in JAX and Flax.

Import the rooms you need, such as `from jaxgen import schedules`; this module imports nothing.
"""

__version__ = "0.1.0"
