"""The denoiser that `digits.py` trains: a residual network with its gradient, and Adam.

    h_0     = x W_in + b_in
    h_{l+1} = h_l + silu(h_l W_l + b_l + time(t) U_l + C_l[y])        l = 0 .. layers-1
    out     = h_layers W_out + b_out

`x` is a batch of flattened images (n, pixels), `t` its time steps (n,), `y` its classes (n,), where
the class `classes` (one past the last) stands for "none": the unconditional half that classifier-free
guidance needs (Ho and Salimans 2022, arXiv:2207.12598). All arrays are float32.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Adam",
    "FloatArray",
    "IntArray",
    "Parameters",
    "gradients",
    "init_parameters",
    "time_features",
]

FloatArray = NDArray[np.floating[Any]]
"""float32 in training; the arithmetic itself is not bound to it."""
IntArray = NDArray[np.int64]
Parameters = dict[str, FloatArray]

TIME_FEATURES = 64


def time_features(steps: int, width: int = TIME_FEATURES) -> FloatArray:
    """Sinusoidal features of the time steps 0 .. steps-1, shape (steps, width).

    The positional encoding of Vaswani et al. 2017, arXiv:1706.03762, section 3.5.
    """
    frequencies = np.exp(-np.log(10_000.0) * np.arange(width // 2) / (width // 2))
    angles = np.arange(steps)[:, None] * frequencies[None, :]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def init_parameters(
    rng: np.random.Generator, *, pixels: int, hidden: int, layers: int, classes: int
) -> Parameters:
    """Fresh parameters; the output layer starts at zero, so that the first prediction is zero."""

    def normal(rows: int, columns: int, gain: float = 1.0) -> FloatArray:
        return (rng.standard_normal((rows, columns)) * gain / np.sqrt(rows)).astype(np.float32)

    parameters: Parameters = {
        "w_in": normal(pixels, hidden),
        "b_in": np.zeros(hidden, np.float32),
        "w_out": np.zeros((hidden, pixels), np.float32),
        "b_out": np.zeros(pixels, np.float32),
    }
    for layer in range(layers):
        parameters[f"w_{layer}"] = normal(hidden, hidden)
        parameters[f"b_{layer}"] = np.zeros(hidden, np.float32)
        parameters[f"u_{layer}"] = normal(TIME_FEATURES, hidden)
        parameters[f"c_{layer}"] = (rng.standard_normal((classes + 1, hidden)) * 0.5).astype(
            np.float32
        )
    return parameters


def gradients(
    parameters: Mapping[str, FloatArray],
    x: FloatArray,
    t_features: FloatArray,
    one_hot: FloatArray,
    target: FloatArray,
) -> tuple[float, Parameters]:
    """Mean squared error of the network's output against `target`, and its gradient.

    Args:
        parameters: as `init_parameters` gives them.
        x: noisy images, (n, pixels).
        t_features: rows of `time_features`, (n, TIME_FEATURES).
        one_hot: classes with the "none" column last, (n, classes + 1).
        target: what the network is to output, (n, pixels).
    """
    layers = sum(1 for name in parameters if name.startswith("c_"))
    hidden = x @ parameters["w_in"] + parameters["b_in"]
    inputs: list[FloatArray] = []
    pre: list[FloatArray] = []
    gates: list[FloatArray] = []
    for layer in range(layers):
        inputs.append(hidden)
        z = hidden @ parameters[f"w_{layer}"]
        z += parameters[f"b_{layer}"]
        z += t_features @ parameters[f"u_{layer}"]
        z += one_hot @ parameters[f"c_{layer}"]
        gate = 1.0 / (1.0 + np.exp(-z))
        hidden = hidden + z * gate
        pre.append(z)
        gates.append(gate)
    error = hidden @ parameters["w_out"] + parameters["b_out"] - target
    loss = float(np.mean(np.square(error)))

    out: Parameters = {}
    delta = error * np.float32(2.0 / error.size)
    out["w_out"] = hidden.T @ delta
    out["b_out"] = delta.sum(axis=0)
    upstream = delta @ parameters["w_out"].T
    for layer in reversed(range(layers)):
        gate = gates[layer]
        dz = upstream * (gate * (1.0 + pre[layer] * (1.0 - gate)))
        out[f"w_{layer}"] = inputs[layer].T @ dz
        out[f"b_{layer}"] = dz.sum(axis=0)
        out[f"u_{layer}"] = t_features.T @ dz
        out[f"c_{layer}"] = one_hot.T @ dz
        upstream = upstream + dz @ parameters[f"w_{layer}"].T
    out["w_in"] = x.T @ upstream
    out["b_in"] = upstream.sum(axis=0)
    return loss, out


class Adam:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980), in place, with an average of the parameters.

    Args:
        parameters: the arrays that `step` changes.
        average_decay: decay of the exponential moving average kept in `average`.
    """

    def __init__(self, parameters: Parameters, average_decay: float = 0.995) -> None:
        self.parameters = parameters
        self.average = {name: value.copy() for name, value in parameters.items()}
        self._decay = np.float32(average_decay)
        self._first = {name: np.zeros_like(value) for name, value in parameters.items()}
        self._second = {name: np.zeros_like(value) for name, value in parameters.items()}
        self._count = 0

    def step(self, gradient: Mapping[str, FloatArray], rate: float) -> None:
        """Move every parameter by one update of learning rate `rate`."""
        self._count += 1
        beta1, beta2 = 0.9, 0.99
        scale = rate * np.sqrt(1 - beta2**self._count) / (1 - beta1**self._count)
        for name, value in self.parameters.items():
            first, second, grad = self._first[name], self._second[name], gradient[name]
            first += np.float32(1 - beta1) * (grad - first)
            second += np.float32(1 - beta2) * (grad * grad - second)
            np.subtract(
                value, np.float32(scale) * first / (np.sqrt(second) + np.float32(1e-8)), out=value
            )
            self.average[name] += (1 - self._decay) * (value - self.average[name])
