"""Latent diffusion without conditions: faces at 256x256 pixels (Rombach et al. 2022).

The table is that of the authors' code (configs/latent-diffusion/ffhq-ldm-vq-4.yaml): a U-Net of
274M parameters on latents of 64x64x3, attention with heads of 32 at 32, 16 and 8 positions a side;
1000 steps whose betas have linear roots from 0.0015 to 0.0195; 2e-6 times batches of 42 on one GPU,
AdamW with a decay of 0.01 (PyTorch's). Their FFHQ has an FID of 4.98 by 200 DDIM steps with eta 1,
their CelebA-HQ of 5.11 with eta 0 (README of CompVis/latent-diffusion). After how many steps is
from memory: 635,000.

    python -m experiments.autoencoder_kl --model.multipliers 1 2 4 --model.latent-channels 3 \\
        --run-dir runs/autoencoder_kl_f4 --data.dir DIR
    python -m experiments.latent_diffusion --data.dir DIR     trains, or resumes
    python -m experiments.latent_diffusion sample --num 64 --out grid.png
    python -m experiments.latent_diffusion evaluate

Departures: the first stage is KL-f4, where theirs is VQ-f4 (a run of `vqgan` with these sizes is
one too: latents before they are quantized); the average of the parameters is warmed up; the
convolutions that halve pad one side.
`evaluate` gives the loss of training on held-out latents. It has not been trained here.
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.diffusion import DiffusionConfig, ModelConfig, SamplerConfig
from .recipes.latent_diffusion import ChainConfig, build_chain
from .recipes.shared import AdamConfig, AverageConfig

recipe = Recipe(
    build_chain,
    ChainConfig(
        run_dir="runs/latent_diffusion",
        first_stage="runs/autoencoder_kl_f4",
        steps=635_000,
        batch_size=42,
        sample_every=10_000,
        checkpoint_every=5000,
        cached=False,
        data=DataConfig(name="folder", resize=256),
        model=ModelConfig(
            network="ldm",
            channels=224,
            multipliers=(1, 2, 3, 4),
            attention_resolutions=(32, 16, 8),
            head_width=32,
            dropout=0.0,
        ),
        diffusion=DiffusionConfig(schedule="root_linear", first_beta=0.0015, last_beta=0.0195),
        sampler=SamplerConfig(name="ddim", num_steps=200, eta=1.0, clip=False),
        optimizer=AdamConfig(learning_rate=42 * 2e-6, weight_decay=0.01),
        average=AverageConfig(decay=0.9999),
    ),
    data="folder of images",
    published="FID 4.98 (FFHQ)",
)

if __name__ == "__main__":
    recipe.main()
