"""How good a digits model is: an independent classifier judges what it draws."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

from vyvo_dagster.training.digits import CLASSES, load_digits

__all__ = ["accuracy"]


def accuracy(
    weights: Path, sampling_file: Path, *, per_digit: int = 20, steps: int = 25, seed: int = 0
) -> float:
    """Share of drawn digits that a classifier of the real ones takes for the digit asked for.


    Args:
        weights: the .npz of `save_weights`.
        sampling_file: the runner template's own `sampling.py`: what is measured is what is served.
        per_digit: how many are drawn of each of the ten digits.
        steps: denoising steps.
        seed: of the first digit; each next digit has the next seed.
    """
    from sklearn.svm import SVC  # not at the top: it takes a second to import

    images, labels = load_digits()
    classifier = SVC(gamma="scale", C=10.0).fit(images, labels)
    sampling = _load(sampling_file)
    model = sampling.load_model(weights)
    right = 0
    for digit in range(CLASSES):
        drawn = sampling.sample(model, digit, per_digit, steps=steps, seed=seed + digit)
        as_trained = drawn.reshape(per_digit, -1).astype(np.float32) / 127.5 - 1
        right += int((classifier.predict(as_trained) == digit).sum())
    return right / (CLASSES * per_digit)


def _load(path: Path) -> ModuleType:
    # The folder's name is no Python name: it is a template, copied whole into the runner.
    spec = importlib.util.spec_from_file_location("digits_diffusion_sampling", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up while it is still being loaded.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
