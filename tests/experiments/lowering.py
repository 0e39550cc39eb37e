"""Every recipe at its own size, lowered for accelerators on a machine without one."""

import dataclasses
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

import experiments
from jaxgen.data import sources
from jaxgen.data.captioned_digits import captioned_digits
from jaxgen.data.captions import encode_text
from jaxgen.data.sources import ArraySource, digits
from jaxgen.models.vgg import STAGES, VGG16, Pretrained
from jaxgen.training import evaluation, pictures, program, states
from jaxgen.training.recipe import Recipe
from jaxgen.training.strategies import make_strategy

PLATFORMS = ("cuda", "tpu")
SHAPES = {"cifar10": (32, 32, 3), "mnist": (28, 28, 1)}


def recipes():
    """The recipes by name, as the folder has them."""
    modules = (
        importlib.import_module(f"experiments.{module.name}")
        for module in pkgutil.iter_modules(experiments.__path__)
    )
    return {
        module.__name__.removeprefix("experiments."): module
        for module in modules
        if isinstance(getattr(module, "recipe", None), Recipe)
    }


def files_of_that_shape(name, path, split, resize, train=None):
    """The same, in the place of files."""
    return images_of_that_shape(name, split, resize=resize)


def images_of_that_shape(name, split, data_dir=None, *, resize=None):
    """In the place of a set that is not here: images of its shape, in ten classes, with
    captions in a folder."""
    if name == "digits":
        return digits(split or "train", resize=resize)
    if name == "captioned_digits":
        return captioned_digits(split or "train")
    if name == "folder":  # of faces with 34 attributes, which exclude each other in twos
        attributes = np.arange(640)[:, None] // 2 ** np.arange(17) % 2
        attributes = np.concatenate([attributes, 1 - attributes], axis=1).astype(np.int32)
        images = np.zeros((640, resize, resize, 3), np.uint8)
        text = encode_text([("a small red bird", "red wings")] * 640)
        arrays = {"image": images, "attributes": attributes, "text": text}
        return ArraySource(arrays, name=name)
    shape = SHAPES[name] if resize is None else (resize, resize, SHAPES[name][-1])
    image = np.random.default_rng(0).integers(0, 256, (640, *shape), dtype=np.uint8)
    return ArraySource({"image": image, "label": np.arange(640, dtype=np.int32) % 10}, name=name)


def vgg_of_that_shape(path=None):
    """In the place of weights that are not here."""
    image = jnp.zeros((1, 16, 16, 3))
    shapes = jax.eval_shape(VGG16().init, jax.random.key(0), image)["params"]
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)
    weights = tuple(jnp.ones(channels, jnp.float32) for channels, _ in STAGES)
    return Pretrained(VGG16(), params, weights, "0" * 64)


class Lowered:
    """A recipe's programs, lowered for the platforms: `step`, `sample` (None where there is no
    prior) and `evaluate` are texts of StableHLO."""

    def __init__(self, module, monkeypatch, **changes):
        monkeypatch.setattr(sources, "load", images_of_that_shape)
        monkeypatch.setattr(sources, "_from_files", files_of_that_shape)
        config = dataclasses.replace(module.recipe.config, **changes)
        experiment = module.recipe.build(config)
        strategy = make_strategy("jit", jax.devices()[:1])
        state = states.abstract_state(experiment, config, strategy)
        fixed = jax.tree.map(_shape, experiment.family.fixed)
        raw = jax.tree.map(
            _shape,
            experiment.pipeline.host_batch(0, process_index=0, process_count=1),
        )
        resident = program.is_resident(experiment, config)
        data = jax.tree.map(_shape, experiment.pipeline.arrays) if resident else raw
        number = jax.ShapeDtypeStruct((), jnp.int32)

        def lower(function, *args):
            return export.export(function, platforms=PLATFORMS)(*args).mlir_module()

        self.step = lower(
            program.make_program(experiment, config, strategy, state),
            state, fixed, data, number,
        )  # fmt: skip
        variables = evaluation.variables_of(state, experiment.averages, fixed)
        key = jax.eval_shape(lambda: jax.random.key(0))
        held_out = jax.tree.map(_shape, experiment.held_out[np.arange(8)])
        held_out["weight"] = jax.ShapeDtypeStruct((8,), jnp.float32)
        self.evaluate = lower(
            evaluation.evaluate_program(experiment, strategy), variables, held_out, key
        )
        self.sample = None
        if experiment.family.sample is not None:
            condition = _conditions(experiment.family, 8)
            draw = evaluation.sample_program(experiment, strategy)
            self.sample = lower(draw, variables, key, 8, condition)


def _conditions(family, num):
    conditions = pictures.in_turn(family, num)
    return None if conditions is None else jax.tree.map(_shape, conditions)


def _shape(x):
    x = np.asarray(x) if not hasattr(x, "dtype") else x
    return jax.ShapeDtypeStruct(np.shape(x), x.dtype)
