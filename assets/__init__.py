"""Dagster assets: from a model's training and weights to its image, registry entry and deployments."""

from assets.deployments import deployment
from assets.images import runner_image
from assets.jobs import build_runner, train_digits_diffusion
from assets.registry import model_version
from assets.training import digits_diffusion_training
from assets.weights import model_weights

__all__ = ["ASSETS", "JOBS"]

ASSETS = [digits_diffusion_training, model_weights, runner_image, model_version, deployment]
JOBS = [build_runner, train_digits_diffusion]
