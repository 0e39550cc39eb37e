"""Text to image by latent diffusion: captions to 256x256 pixels (Rombach et al. 2022).

The table is that of the authors' code (configs/latent-diffusion/txt2img-1p4B-eval.yaml): a U-Net of
872M parameters on the latents of KL-f8, 32x32x4, whose positions read a text of 77 tokens through a
transformer of 32 layers of 1280, trained with it; 1000 steps whose betas have linear roots from
0.00085 to 0.012. The paper's figures on MS-COCO (recalled, not seen here): FID 23.31, and with
guidance of 1.5 12.63 (30,000 captions of the validation set, 250 DDIM steps).

    python -m experiments.autoencoder_kl --data.dir DIR
    python -m experiments.text_to_image --data.dir DIR        trains, or resumes
    python -m experiments.text_to_image sample --text "a bowl of fruit" --num 16 --out fruit.png
    python -m experiments.text_to_image sample --picture guidance --out guidance.png
    python -m experiments.text_to_image evaluate

Batches, rate and the share of captions that are left out are ours: the configuration does not say
how the model was trained. Departures: tokens are pairs learned from the captions, where theirs are
BERT's; padding is not read; the transformer's attention is as wide as itself (theirs 512); the
convolutions that halve pad one side.
`evaluate` gives the loss of training on held-out latents. It has not been trained here.
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.diffusion import DiffusionConfig, ModelConfig, SamplerConfig
from .recipes.latent_diffusion import ChainConfig, build_chain
from .recipes.shared import AdamConfig, AverageConfig
from .recipes.text import TextConfig

recipe = Recipe(
    build_chain,
    ChainConfig(
        run_dir="runs/text_to_image",
        steps=400_000,
        batch_size=256,
        sample_every=10_000,
        checkpoint_every=5000,
        cached=False,
        data=DataConfig(name="folder", resize=256),
        model=ModelConfig(
            network="ldm",
            condition="text",
            channels=320,
            multipliers=(1, 2, 4, 4),
            attention_resolutions=(32, 16, 8),
            num_heads=8,
            dropout=0.0,
        ),
        text=TextConfig(
            tokenizer="pairs",
            vocabulary=30_522,
            length=77,
            width=1280,
            num_layers=32,
            num_heads=8,
        ),
        diffusion=DiffusionConfig(schedule="root_linear", first_beta=0.00085, last_beta=0.012),
        sampler=SamplerConfig(name="ddim", num_steps=250, clip=False, guidance_scale=1.5),
        optimizer=AdamConfig(learning_rate=5e-5, warmup_steps=10_000, weight_decay=0.01),
        average=AverageConfig(decay=0.9999),
    ),
    data="folder, captions",
    published="FID 12.63, guided (recalled)",
)

if __name__ == "__main__":
    recipe.main()
