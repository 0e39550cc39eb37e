"""StackGAN's stage I: 64x64 pixels of what is asked for (Zhang et al. 2017).

The networks and the table of the authors' TensorFlow code for Caltech-UCSD Birds (8,855 training
images in its split by class): batches of 64 for 600 epochs of 138 steps, Adam 2e-4 (beta1 0.5)
halved every 50 epochs, conditioning augmentation of weight 2 (on the mean over 128 dimensions),
triples of real, wrong and fake pairs. The paper's Inception score for both stages, 3.70 +- 0.04 as
we remember it, is by an Inception network fitted to the birds, which is not here: another
extractor's numbers do not compare with it.

Departures: a transformer that is trained with the discriminator reads one caption a step, where the
paper has embeddings of a pretrained char-CNN-RNN, the mean of four captions' (`--model.condition
embedding` takes such); images are shifted by up to 6 pixels of 64 where the authors cut 64 pixels
of 76, from boxes around the birds; a wrong pair is an image with the next example's condition, in
the place of an image of another class. The recipe has not been trained.

    python -m experiments.stackgan_stage1 --data.dir DIR              trains, or resumes
    python -m experiments.stackgan_stage1 sample --text "a small yellow bird" --out bird.png
    python -m experiments.stackgan_stage2 --data.dir DIR              stage II
"""

from jaxgen.training.config import DataConfig
from jaxgen.training.recipe import Recipe

from .recipes.stackgan import BIRDS, Stage1Config, build_stage1

recipe = Recipe(
    build_stage1,
    Stage1Config(
        run_dir="runs/stackgan_stage1",
        steps=600 * (BIRDS // 64),
        batch_size=64,
        sample_every=2000,
        checkpoint_every=2000,
        data=DataConfig(name="folder", resize=64),
    ),
    data="folder, captions",
    published="IS 3.70, both stages (recalled)",
)

if __name__ == "__main__":
    recipe.main()
