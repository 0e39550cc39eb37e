"""DiT-XL/2 on the latents of a KL autoencoder, 256x256 pixels (Peebles & Xie 2023).

The table is that of the paper and the authors' code: 674.8M parameters, patches of 2x2 of 32x32x4
latents; 1000 linear steps with a learned variance; AdamW at 1e-4 without decay, batches of 256,
images mirrored, average of the parameters 0.9999, a tenth of the classes left out; 250 ancestral
steps without clipping. On ImageNet at 256x256 the paper reports an FID of 9.62 and with guidance of
1.5 of 2.27 (50,000 samples, ADM's evaluation, 7,000,000 steps; the 9.62 and the 7,000,000 are
recalled, not seen here); after 400,000 steps 18 to 19.5 without guidance. Guidance in their code is
of the first three of the four channels, unintended; theirs of 1.5 is about 1.375 of all four, as
here (the authors, issue 41 of facebookresearch/DiT:
FID 2.23). The smaller ones are

    --model.dit.width 384 --model.dit.depth 12 --model.dit.num-heads 6       S
    --model.dit.width 768 --model.dit.depth 12 --model.dit.num-heads 12      B
    --model.dit.width 1024 --model.dit.depth 24 --model.dit.num-heads 16     L

The data are a folder with one subfolder a class, encoded batch by batch; `--cached --no-flip` keeps
the latents of a set that fits into memory.

    python -m experiments.autoencoder_kl --data.dir DIR
    python -m experiments.dit_latent --first-stage runs/autoencoder_kl --data.dir DIR
    python -m experiments.dit_latent sample --num 64 --out grid.png
    python -m experiments.dit_latent sample --picture guidance --out guidance.png
    python -m experiments.dit_latent evaluate

Departures: the first stage is one's own, not Stable Diffusion's; the embedding of no class is
zero; the average is warmed up.
`evaluate` gives the loss of training on held-out latents. It has not been trained here.
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.diffusion import DiffusionConfig, ModelConfig, SamplerConfig
from .recipes.dit import DiTConfig
from .recipes.latent_diffusion import ChainConfig, build_chain
from .recipes.shared import AdamConfig, AverageConfig

recipe = Recipe(
    build_chain,
    ChainConfig(
        run_dir="runs/dit_latent",
        steps=400_000,
        batch_size=256,
        sample_every=10_000,
        checkpoint_every=5000,
        flip=True,
        cached=False,
        data=DataConfig(name="folder", resize=256),
        model=ModelConfig(
            network="dit",
            condition="label",
            dit=DiTConfig(width=1152, depth=28, num_heads=16),
        ),
        diffusion=DiffusionConfig(learned_variance=True),
        sampler=SamplerConfig(num_steps=250, spacing="linspace", clip=False, guidance_scale=1.375),
        optimizer=AdamConfig(learning_rate=1e-4),
        average=AverageConfig(decay=0.9999),
    ),
    data="folder, classes",
    published="FID 2.27, guided (ImageNet)",
)

if __name__ == "__main__":
    recipe.main()
