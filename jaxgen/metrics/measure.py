"""What `--measure-every` measures: distances of samples from a run's training images."""

import warnings
from pathlib import Path

import numpy as np

from jaxgen.data.sources import Source
from jaxgen.metrics.checks import FewSamplesWarning
from jaxgen.metrics.classifier import kept_classifier
from jaxgen.metrics.extractors import load_extractor
from jaxgen.metrics.features import Extractor
from jaxgen.metrics.prdc import PRDC
from jaxgen.metrics.report import frechet_distances, named, neighbour_shares
from jaxgen.metrics.statistics import cached_statistics, image_statistics
from jaxgen.training.config import RunConfig
from jaxgen.training.experiment import Distances

NEIGHBOURS = 5
MOST_FEATURES = 10_000
PLACE = "measure"


def distances_from_training(train: Source, held_out: Source, config: RunConfig) -> Distances:
    """The Fréchet distance of samples from the training images, with precision and recall.

    They are named as `compare_images` names them. The training images are the reference, as in
    published FIDs and in the comparison; their statistics, and a classifier that is trained for
    this, are kept in the run directory's `measure/`.

    Args:
        train: Training images.
        held_out: Held-out images, on which a classifier's accuracy is measured.
        config: Flags of the run: `run_dir`, `measure_extractor`, `measure_num`.

    Raises:
        ValueError: Too few samples; an extractor that is not there, or cannot see the images.
    """
    if config.measure_num <= NEIGHBOURS:
        raise ValueError(
            f"--measure-num must be at least {NEIGHBOURS + 1}, got {config.measure_num}"
        )
    name, place = config.measure_extractor, Path(config.run_dir) / PLACE
    try:
        extractor = _extractor(name, place, train, held_out)
        extractor.check(train.spec["image"][0])
        reference = cached_statistics(
            place / f"{name}.npz", extractor, train, max_features=MOST_FEATURES
        )
    except (ImportError, OSError, ValueError) as error:
        raise ValueError(f"--measure-extractor {name}: {error}") from error
    suffix = extractor.suffix

    def of(images: np.ndarray) -> dict[str, float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FewSamplesWarning)  # said once, in the protocol
            samples = image_statistics(extractor, images, spatial=False)
            return {
                **frechet_distances(samples, reference, suffix),
                **neighbour_shares(
                    samples.features, reference.features, suffix, k=NEIGHBOURS, most=MOST_FEATURES
                ),
            }

    width, warning = len(reference.moments.mean), None
    if config.measure_num <= width:
        warning = (
            f"{config.measure_num} samples for {width} features: distances are strongly biased and "
            "compare with each other alone"
        )
    return Distances(
        names=(named("FID", "FD", suffix), *(named(n, n, suffix) for n in PRDC._fields)),
        of=of,
        protocol={"reference": dict(reference.protocol), "neighbours": NEIGHBOURS},
        warning=warning,
    )


def _extractor(name: str, place: Path, train: Source, held_out: Source) -> Extractor:
    if name == "classifier":
        return kept_classifier(place / "classifier-weights.npz", train, held_out)
    return load_extractor(name)
