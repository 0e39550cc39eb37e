"""Metrics of samples and models, usable alone: on features, on arrays or folders of images.

- of features, NumPy in and numbers out: `frechet`, `kernel`, `inception_score`, `prdc`;
- from images to features: `inception` (FID's network), `lite0`, `classifier`, all of them an
  `Extractor` of `features`, whose `extract` runs them;
- of two sets of images, everything with its protocol: `report.compare_images`, or
  `python -m jaxgen.metrics`; `statistics` keeps a reference's side in a file;
- of images and their reconstructions, `pairs`: PSNR and LPIPS;
- `neighbours` looks for memorized training images, `classification` judges a classifier.
"""
