"""ImageGPT-S on CIFAR-10 (Chen et al. 2020, "Generative Pretraining from Pixels").

The published network, 24 blocks 512 wide with 8 heads, 76.6M parameters, over 32x32 pixels of 512
colours that k-means finds in the training images; M and L by `--model.features 1024 --model.layers
36` and `--model.features 1536 --model.layers 48 --model.num-heads 16`. The likelihood is exact, of
the colours' codes, 9 bits a pixel, and not of the bytes: bits a code (`bits_per_latent_dim`) do not
compare with bits/dim.

The authors train on ImageNet at 32x32 and give its loss, 2.09 nats a code for S, 2.06 for M, 2.05
for L; they give none on CIFAR-10. Batch size, Adam's moments, the rate and its cosine are the
paper's, from memory. Departures: CIFAR-10 in the place of ImageNet, for fewer steps, with dropout
and mirrored images, for there are 26 times fewer. In float32 a step needs much memory: take
`--precision bfloat16` or `--accumulate 8`. It has not been trained.

    python -m experiments.imagegpt_cifar --data.dir DIR            trains, or resumes
    python -m experiments.imagegpt_cifar sample --num 64 --out grid.png
    python -m experiments.imagegpt_cifar sample --picture completions --out completed.png
    python -m experiments.imagegpt_cifar evaluate
"""

from jaxgen.models.transformer import S
from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.autoregressive import Config, ModelConfig, build
from .recipes.shared import AdamConfig

STEPS = 200_000
recipe = Recipe(
    build,
    Config(
        run_dir="runs/imagegpt_cifar",
        steps=STEPS,
        batch_size=128,
        sample_every=10_000,
        checkpoint_every=1000,
        data=DataConfig(name="cifar10"),
        palette=512,
        flip=True,
        model=ModelConfig(
            network="transformer",
            features=S.width,
            layers=S.num_layers,
            num_heads=S.num_heads,
            dropout=0.1,
        ),
        optimizer=AdamConfig(
            learning_rate=3e-3, b2=0.95, warmup_steps=400, decay_steps=STEPS, schedule="cosine"
        ),
    ),
    data="CIFAR-10",
    published="2.09 nats a code (ImageNet)",
)

if __name__ == "__main__":
    recipe.main()
