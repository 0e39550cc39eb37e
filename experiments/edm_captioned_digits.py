"""EDM told what to draw by a sentence: captioned digits, 16x16 pixels in colour.

    python -m experiments.dual_encoder                                  first: what reads sentences
    python -m experiments.edm_captioned_digits                          trains, or resumes
    python -m experiments.edm_captioned_digits sample --text "a red seven on a blue ground"
    python -m experiments.edm_captioned_digits sample --picture guidance --out guidance.png
    python -m experiments.obedience runs/edm_captioned_digits

The method of Karras et al. 2022 with classifier-free guidance (Ho & Salimans 2022). The sentence is
read by the frozen text half of a dual encoder, for which captions are told apart by whatever their
pictures show; so it is with the frozen encoders of large models of text to image. A transformer
that is trained with the denoiser (`--text.encoder trained`) comes to tell apart only what explains
most of a picture: the ground and the colour, with `--text.rate 0.1` the place too, and not the
digit. With `--model.condition attributes` the model is told the same by 26 attributes.

A fifth of all combinations of digit, colour and ground is in no training picture
(`jaxgen.data.captioned_digits`): `experiments.obedience ... --held-out unseen` asks for these. What
is obeyed is in docs/results.md: of sentences about nine digits in ten and more, seen together or
not.
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.score import Config, ProcessConfig, SamplerConfig, ScoreModelConfig, build
from .recipes.shared import AdamConfig, AverageConfig
from .recipes.text import TextConfig

recipe = Recipe(
    build,
    Config(
        run_dir="runs/edm_captioned_digits",
        steps=5000,
        batch_size=32,
        sample_every=1000,
        checkpoint_every=1000,
        data=DataConfig(name="captioned_digits"),
        model=ScoreModelConfig(
            channels=24,
            multipliers=(1, 2, 2),
            num_res_blocks=1,
            attention_resolutions=(8, 4),
            dropout=0.0,
            condition="text",
        ),
        text=TextConfig(encoder="runs/dual_encoder", width=64),
        # Which digit, and where, is decided at more noise than strokes are.
        process=ProcessConfig(
            name="edm",
            prediction="edm",
            times="log_normal",
            sigma_data=0.65,
            times_mean=0.0,
            times_std=1.5,
        ),
        sampler=SamplerConfig(solver="dpm", num_steps=20, grid="karras", guidance_scale=2.0),
        optimizer=AdamConfig(learning_rate=3e-3, warmup_steps=100, decay_steps=5000, clip_norm=1.0),
        average=AverageConfig(decay=0.999),
    ),
    data="captioned digits",
)

if __name__ == "__main__":
    recipe.main()
