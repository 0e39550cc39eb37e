"""A VAE of one stochastic layer on binarized MNIST (Burda et al. 2016, section 5 and appendix C).

The paper's networks: 50 latents, two hidden layers of 200 tanh units each way, Bernoulli pixels,
Adam (beta2 0.999, eps 1e-4), batches of 20, and a rate of 1e-3 falling in eight stages over 3,280
epochs. The paper reports test marks by the bound of K = 5000 samples: -86.76 nats for the VAE and
-84.78 for the IWAE of 50 samples. Here the run is 100 epochs in batches of 100 at a constant rate;
`--batch-size 20 --optimizer.num-stages 8 --optimizer.eps 1e-4 --steps 9840000` is the paper's.

`--binarize dynamic` draws the pixels anew for each batch, `static` once for the run. Marks of other
papers on static binarization are of a draw that is published as files (Larochelle & Murray 2011),
which is not this one: such numbers compare only roughly. What this code has measured stands in
docs/results.md.

    python -m experiments.vae_mnist --data.dir DIR            trains, or resumes
    python -m experiments.vae_mnist evaluate --evaluation.num-importance 5000
    python -m experiments.vae_mnist --objective.name iwae --objective.num-importance 50
    python -m experiments.vae_mnist sample --picture reconstructions --out rebuilt.png
"""

from dataclasses import dataclass

from experiments.vae_recipe import Binarize, ModelConfig, OptimizerConfig, build
from experiments.vae_recipe import Config as VaeConfig
from jaxgen.training.cli import main
from jaxgen.training.config import DataConfig, operational


@dataclass(frozen=True)
class Config(VaeConfig):
    """The paper's networks, 100 epochs."""

    run_dir: str = operational("runs/vae_mnist")
    steps: int = operational(60_000)
    batch_size: int = 100
    log_every: int = operational(600)
    sample_every: int = operational(6000)
    evaluate_every: int = operational(6000)
    checkpoint_every: int = operational(6000)
    data: DataConfig = DataConfig(name="mnist")
    binarize: Binarize = "dynamic"
    model: ModelConfig = ModelConfig(features=(200, 200), activation="tanh", latent_dim=50)
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3)


if __name__ == "__main__":
    main(Config, build)
