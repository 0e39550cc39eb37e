"""VDM on CIFAR-10 without augmentation (Kingma et al. 2021).

The authors' table: 128 channels, 32 residual blocks down and 33 up at full resolution, attention in
the middle alone, Fourier features of the pixels' finest bits; a schedule whose ends are learned,
at first -13.3 and 5; continuous time; AdamW at 2e-4 with a weight decay of 0.01 after 100 steps of
warm-up, 10 million updates of 128 images, average of the parameters 0.9999. The authors give 2.64
bits/dim as the paper's result and 2.637 of their released weights (variational bound, test set).

    python -m experiments.vdm_cifar --data.dir DIR            trains, or resumes
    python -m experiments.vdm_cifar evaluate
    python -m experiments.vdm_cifar sample --num 16 --out grid.png
    python -m experiments.vdm_cifar --data.name digits --batch-size 64 --steps 2000 \\
        --model.channels 32 --model.num-res-blocks 4 --average.decay 0.999 \\
        --optimizer.learning-rate 1e-3 --run-dir runs/vdm_digits

The last one is the same model shrunk to the embedded digits. The paper's model with augmentation
(2.49) has `--schedule.kind monotone --model.channels 256 --model.attends --model.dropout 0.05
--batch-size 1024 --flip`, but for the rest of its augmentation. What is between the ends of that
schedule is trained for the least variance of the loss, as the paper says (recalled, not seen here);
the authors' code trains all of it by the bound.

Departures: the network has no input for a class that is always zero, 512 parameters of 30.6M; the
loss is in nats and theirs in bits/dim, which Adam does not tell apart but for its epsilon; the
average is warmed up. It has not been trained here to its end.
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.shared import AdamConfig, AverageConfig
from .recipes.vdm import Config, SamplerConfig, ScheduleConfig, VDMModelConfig, build

recipe = Recipe(
    build,
    Config(
        run_dir="runs/vdm_cifar",
        steps=10_000_000,
        batch_size=128,
        sample_every=10_000,
        checkpoint_every=10_000,
        data=DataConfig(name="cifar10"),
        model=VDMModelConfig(channels=128, num_res_blocks=32, dropout=0.1, exponents=(6, 7)),
        schedule=ScheduleConfig(kind="scalar", gamma_min=-13.3, gamma_max=5.0),
        sampler=SamplerConfig(num_steps=1000),
        optimizer=AdamConfig(learning_rate=2e-4, b2=0.99, warmup_steps=100, weight_decay=0.01),
        average=AverageConfig(decay=0.9999),
    ),
    data="CIFAR-10",
    published="2.64 bits/dim",
)

if __name__ == "__main__":
    recipe.main()
