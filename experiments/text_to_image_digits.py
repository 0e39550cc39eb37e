"""Text to image in two stages on captioned digits: 16x16 pixels in colour, two CPU cores.

The second stage: a small transformer (DiT) by EDM's method on the 8x8x4 latents of
`autoencoder_kl_digits`, told the sentence by the frozen text half of `dual_encoder`, by classifier-
free guidance. With `--text.encoder trained` its positions read the words by a transformer that is
trained with it. A fifth of all combinations of digit, colour and ground is in no training picture:
`experiments.obedience ... --held-out unseen` asks for these.

    python -m experiments.autoencoder_kl_digits
    python -m experiments.dual_encoder
    python -m experiments.text_to_image_digits                trains, or resumes
    python -m experiments.text_to_image_digits sample --text "a red seven on a blue ground"
    python -m experiments.text_to_image_digits sample --picture guidance --out guidance.png
    python -m experiments.obedience runs/text_to_image_digits
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.dit import DiTConfig
from .recipes.latent_diffusion import ScoreConfig, build_score
from .recipes.score import ProcessConfig, SamplerConfig, ScoreModelConfig
from .recipes.shared import AdamConfig, AverageConfig
from .recipes.text import TextConfig

recipe = Recipe(
    build_score,
    ScoreConfig(
        run_dir="runs/text_to_image_digits",
        first_stage="runs/autoencoder_kl_digits",
        steps=5000,
        batch_size=64,
        sample_every=1000,
        checkpoint_every=1000,
        data=DataConfig(name="captioned_digits"),
        model=ScoreModelConfig(
            network="dit",
            condition="text",
            dit=DiTConfig(width=128, depth=4, num_heads=4, patch_size=2),
        ),
        text=TextConfig(encoder="runs/dual_encoder", width=64),
        # Latents have a deviation of 1; digit and place are decided at more noise than strokes.
        process=ProcessConfig(
            name="edm",
            prediction="edm",
            times="log_normal",
            sigma_data=1.0,
            times_mean=0.0,
            times_std=1.5,
        ),
        sampler=SamplerConfig(solver="dpm", num_steps=20, grid="karras", guidance_scale=2.0),
        optimizer=AdamConfig(learning_rate=2e-3, warmup_steps=100, decay_steps=5000, clip_norm=1.0),
        average=AverageConfig(decay=0.999),
    ),
    data="captioned digits",
)

if __name__ == "__main__":
    recipe.main()
