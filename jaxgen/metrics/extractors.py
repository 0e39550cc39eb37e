"""Every extractor by its name."""

from pathlib import Path

from jaxgen.checks import check_choice
from jaxgen.metrics.features import Extractor

EXTRACTORS = ("inception", "lite0", "classifier")


def load_extractor(
    name: str,
    *,
    weights: str | Path | None = None,
    resizer: str = "tensorflow",
    train_on: str = "digits",
    data_dir: str | Path | None = None,
) -> Extractor:
    """An extractor by name.

    Args:
        name: Name of the extractor: `inception` (of FID; `inception_extractor`), `lite0`
            (`lite0_extractor`), or `classifier` (trained now, for images of at most 128 pixels;
            `train_classifier`).
        weights: Weights of `inception` or `lite0`; None downloads the first and keeps it, and takes
            the second from the package of the extra `lite0`.
        resizer: Whose resizing `inception` sees, "tensorflow" or "pytorch".
        train_on: Labelled data set that `classifier` is trained on.
        data_dir: Directory of that data set.

    Raises:
        ValueError: another name, or weights for `classifier`; and as the function that it calls.
        FileNotFoundError, ImportError, OSError: as the function that it calls.
    """
    check_choice("name", name, EXTRACTORS)
    # Imported when asked for: each brings a network with it.
    if name == "inception":
        from jaxgen.metrics.inception import inception_extractor

        return inception_extractor(weights, resizer=resizer)
    if name == "lite0":
        from jaxgen.metrics.lite0 import lite0_extractor

        return lite0_extractor(weights)
    if weights is not None:
        raise ValueError(
            f"weights are for inception and lite0, classifier trains its own; got {weights}"
        )
    from jaxgen.data.sources import load_pair
    from jaxgen.metrics.classifier import train_classifier

    return train_classifier(*load_pair(train_on, ("train", "test"), data_dir))
