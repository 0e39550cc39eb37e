"""MaskGIT on the codes of VQGAN, 256x256 pixels (Chang et al. 2022).

172.5M parameters: a bidirectional transformer, 24 blocks 768 wide with 16 heads, over 16x16 codes
of 1,024, told the class. A share of the codes is hidden, drawn by the cosine schedule; label
smoothing 0.1, dropout 0.1; AdamW (0.9, 0.96) at 1e-4 after 5,000 steps of warm-up, weight decay
0.045, batches of 256, 2,000,000 steps. Samples take 8 steps, with noise of the temperature
4.5 (1 - t / T) on the choice of what is kept. The table is that of the authors' code
(configs/maskgit_class_cond_config.py of google-research/maskgit), whose README gives an FID of 6.06
on ImageNet at 256x256; the 8 steps and the 6.18 of the paper are recalled, their demo takes 16.

Departures, beside a first stage of one's own (theirs has a StyleGAN's discriminator with R1 and an
entropy loss): images are resized whole, where theirs are cut at random; the attention's weights are
not dropped; GELU is exact; the softmax is over the codes alone, where theirs is over the classes
and the mask too. Their training is not published: the least masked share of 0.5 that their table
names is left out here, which of a mask's places are drawn is the paper's (`ceil`), and the loss is
a mean over an example's masked codes. It has not been trained.

The data are a folder with one subfolder a class.

    python -m experiments.vqgan --data.dir DIR
    python -m experiments.maskgit --first-stage runs/vqgan --data.dir DIR
    python -m experiments.maskgit sample --num 64 --out grid.png
    python -m experiments.maskgit sample --picture completions --out completed.png
    python -m experiments.maskgit evaluate

A small one, on the 8x8 codes of CIFAR-10:

    python -m experiments.vqgan_cifar --data.dir DIR
    python -m experiments.maskgit --first-stage runs/vqgan_cifar --run-dir runs/maskgit_cifar \\
        --data.name cifar10 --data.dir DIR --data.resize None --model.width 128 --model.depth 4 \\
        --model.num-heads 4 --batch-size 32 --steps 10000 --optimizer.warmup-steps 500
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.masked import CodesConfig, ModelConfig, build_on_codes
from .recipes.shared import AdamConfig, AverageConfig

recipe = Recipe(
    build_on_codes,
    CodesConfig(
        run_dir="runs/maskgit",
        steps=2_000_000,
        batch_size=256,
        sample_every=10_000,
        checkpoint_every=10_000,
        data=DataConfig(name="folder", resize=256),
        model=ModelConfig(condition="label"),
        optimizer=AdamConfig(learning_rate=1e-4, b2=0.96, warmup_steps=5000, weight_decay=0.045),
        average=AverageConfig(decay=0.999),
    ),
    data="folder, classes",
    published="FID 6.06 (ImageNet)",
)

if __name__ == "__main__":
    recipe.main()
