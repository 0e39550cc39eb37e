"""A VAE of one stochastic layer on binarized MNIST, 20 minutes on two CPU cores.

Kingma & Welling 2014 with 50 latents, Bernoulli pixels and two hidden layers of 500 SiLU units each
way: 200 epochs in batches of 100, Adam at 1e-3 falling linearly to zero, and the average of the
parameters. What it reaches stands in docs/results.md.

Burda et al. 2016 (section 5, appendix C) have two layers of 200 tanh units, batches of 20, and a
rate of 1e-3 falling in eight stages over 3,280 epochs; by the bound of K = 5000 samples they report
-86.76 nats on the test set for the VAE and -84.78 for the IWAE of 50 samples. Theirs is
`--model.features 200 200 --model.activation tanh --batch-size 20 --optimizer.decay-steps None
--optimizer.num-stages 8 --optimizer.eps 1e-4 --average.decay 0 --steps 9840000`.

`--binarize dynamic` draws the pixels anew for each batch, `static` once for the run. Marks of other
papers on static binarization are of a draw that is published as files (Larochelle & Murray 2011),
which is not this one: such numbers compare only roughly.

    python -m experiments.vae_mnist --data.dir DIR            trains, or resumes
    python -m experiments.vae_mnist evaluate --evaluation.num-importance 5000
    python -m experiments.vae_mnist --objective.name iwae --objective.num-importance 50
    python -m experiments.vae_mnist sample --picture reconstructions --out rebuilt.png
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.shared import AverageConfig
from .recipes.vae import Config, ModelConfig, OptimizerConfig, build

STEPS = 120_000  # 200 epochs

recipe = Recipe(
    build,
    Config(
        run_dir="runs/vae_mnist",
        steps=STEPS,
        batch_size=100,
        log_every=600,
        sample_every=12_000,
        evaluate_every=12_000,
        checkpoint_every=12_000,
        data=DataConfig(name="mnist"),
        binarize="dynamic",
        model=ModelConfig(features=(500, 500), activation="silu", latent_dim=50),
        optimizer=OptimizerConfig(learning_rate=1e-3, decay_steps=STEPS),
        average=AverageConfig(decay=0.999),
    ),
    data="MNIST",
    published="-86.76 nats (other network)",
)

if __name__ == "__main__":
    recipe.main()
