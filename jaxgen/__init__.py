"""jaxgen: deep generative models in JAX and Flax. Import the rooms you need: `from jaxgen import losses`."""

__version__ = "0.1.0"
