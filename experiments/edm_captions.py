"""EDM told a caption: a folder of captioned pictures at 32x32 pixels, one CPU core, an hour.

    python -m experiments.dual_encoder --data.name folder --data.dir DIR --data.resize 32
    python -m experiments.edm_captions --data.dir DIR                trains, or resumes
    python -m experiments.edm_captions sample --text "a red flower" --out flowers.png
    python -m experiments.obedience runs/edm_captions --dual-encoder runs/dual_other

The method of Karras et al. 2022 with classifier-free guidance (Ho & Salimans 2022), and a U-Net of
32 channels. The captions are read by the frozen text half of a dual encoder (`dual_encoder`), or,
with `--text.encoder trained`, by a transformer that is trained with the model. A dual encoder that
measures obedience must be another one: train it with another seed. DIR has `train/` and `test/`,
each of pictures and a `metadata.jsonl` with captions.
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.score import Config, ProcessConfig, SamplerConfig, ScoreModelConfig, build
from .recipes.shared import AdamConfig, AverageConfig
from .recipes.text import TextConfig

recipe = Recipe(
    build,
    Config(
        run_dir="runs/edm_captions",
        steps=3000,
        batch_size=32,
        sample_every=1000,
        checkpoint_every=500,
        data=DataConfig(name="folder", resize=32),
        model=ScoreModelConfig(
            channels=32,
            multipliers=(1, 2, 2),
            num_res_blocks=1,
            attention_resolutions=(8,),
            dropout=0.0,
            condition="text",
        ),
        text=TextConfig(encoder="runs/dual_encoder", rate=0.1),
        # What is drawn, and where, is decided at more noise than in photographs.
        process=ProcessConfig(
            name="edm",
            prediction="edm",
            times="log_normal",
            sigma_data=0.5,
            times_mean=-0.5,
            times_std=1.5,
        ),
        sampler=SamplerConfig(solver="dpm", num_steps=20, grid="karras", guidance_scale=2.0),
        optimizer=AdamConfig(learning_rate=2e-3, warmup_steps=100, decay_steps=3000, clip_norm=1.0),
        average=AverageConfig(decay=0.999),
    ),
    data="folder, captions",
)

if __name__ == "__main__":
    recipe.main()
