r"""A prior over the codes of a trained first stage (van den Oord et al. 2017, section 3.3).

A gated PixelCNN on the codes of a finished run of `vqvae_cifar`, 8 rows of 8x10, or of `vqgan` or
`vqgan_cifar` (codebook or FSQ), which stays as it is: its arrays are used, not trained, and a run
refuses another first stage than the one it began with. The paper fits a PixelCNN to the codes of
ImageNet and gives no figure for CIFAR-10 in two stages; the network's size is this package's
choice. With `--model.network transformer` it is a causal transformer over the codes, VQGAN's second
stage (Esser et al. 2021; the blocks are ImageGPT's), `--model.num-heads` of them attending.

On a VQ-VAE, `evaluate` is the bound of log p(x) by both stages, of the 8-bit data: `bits_per_dim`
counts codes and decoder, `second_stage` and `first_stage` are their parts in nats. A decoder of
VQGAN has no likelihood: there `evaluate` is the nats of the codes. `bits_per_latent_dim` are the
bits of a code.

    python -m experiments.vqvae_cifar --data.dir DIR
    python -m experiments.vqvae_prior --first-stage runs/vqvae_cifar --data.dir DIR
    python -m experiments.vqvae_prior sample --num 64 --out grid.png
    python -m experiments.vqvae_prior evaluate
    python -m experiments.vqvae_prior --run-dir runs/vqvae_transformer --model.network transformer \
        --model.features 256 --model.layers 8 --data.dir DIR
"""

from dataclasses import dataclass

from jaxgen.core import Family
from jaxgen.data.pipeline import Pipeline
from jaxgen.families.autoregressive import autoregressive
from jaxgen.families.latent import on_latents
from jaxgen.metrics.measure import distances_from_training
from jaxgen.training.config import DataConfig, RunConfig, operational
from jaxgen.training.experiment import Experiment
from jaxgen.training.recipe import Recipe
from jaxgen.training.runs import Run, open_run

from .recipes.autoregressive import ModelConfig, make_network
from .recipes.first_stage import check_finished, discrete_codec
from .recipes.shared import (
    AdamConfig,
    AverageConfig,
    EvaluationConfig,
    make_adam,
    make_averages,
    make_conditioning,
    protocol,
)


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags of a prior over codes."""

    first_stage: str = operational("runs/vqvae_cifar")
    """Run directory of a first stage with codes; it may move, but not be trained on."""
    model: ModelConfig = ModelConfig()
    optimizer: AdamConfig = AdamConfig(learning_rate=1e-3)
    average: AverageConfig = AverageConfig()
    temperature: float = operational(1.0)
    """Temperature of the codes: below 1 the likely becomes likelier."""
    evaluation: EvaluationConfig = operational(EvaluationConfig())


def build(config: Config) -> Experiment:
    """The experiment of a config: the first stage's data, its codes, the network over them."""
    first = open_run(config.first_stage, data=config.data)
    check_finished(first, config.first_stage)
    source = first.experiment.pipeline.source
    family = make_family(config, first)
    return Experiment(
        family=family,
        pipeline=Pipeline(source, config.batch_size, seed=config.seed),
        held_out=first.experiment.held_out,
        prepare=first.experiment.prepare,
        averages=make_averages(config.average, config.batch_size),
        distances=distances_from_training,
        num_evaluated=config.evaluation.num_examples,
        protocol=protocol(
            first.experiment.held_out,
            config.evaluation.num_examples,
            loss=_loss(family),
            first_stage=f"{first.name}, {first.step} steps",
            preprocessing=first.experiment.protocol["preprocessing"],
        ),
    )


def make_family(config: Config, first: Run) -> Family:
    """A network over the codes of a first stage.

    Args:
        config: Flags.
        first: Run of the first stage.

    Raises:
        ValueError: If the first stage has no codes, or the network no softmax.
    """
    codec, shape, num_codes = discrete_codec(first)
    if config.model.network == "pixelcnnpp":
        raise ValueError(
            "--model.network must have a softmax over codes: gated, pixelcnn or transformer"
        )
    second = autoregressive(
        make_network(config.model, shape, num_codes, config.precision),
        make_adam(config.optimizer),
        image_shape=shape,
        num_values=num_codes,
        conditioning=make_conditioning(config.model.condition, first.experiment.pipeline.source),
        temperature=config.temperature,
    )
    return on_latents(second, codec)


def _loss(family: Family) -> str:
    if family.log_prob is None:
        return "-log p(codes), nats an example"
    return "-log p(x | codes) - log p(codes): the bound by both stages, nats an example"


recipe = Recipe(
    build,
    Config(
        run_dir="runs/vqvae_prior",
        steps=100_000,
        batch_size=128,
        sample_every=5000,
        checkpoint_every=5000,
        data=DataConfig(name="cifar10"),
        model=ModelConfig(network="gated", features=128, layers=15, head_features=512),
        optimizer=AdamConfig(learning_rate=3e-4),
    ),
    data="CIFAR-10",
)

if __name__ == "__main__":
    recipe.main()
