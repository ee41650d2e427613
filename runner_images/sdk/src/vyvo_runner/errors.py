"""Errors of this package.

RunnerError
├── SettingsError   an environment variable is missing or cannot be read
├── UploadError     an output could not be stored
└── WeightsError    the weights are not where the environment says
"""

__all__ = ["RunnerError", "SettingsError", "UploadError", "WeightsError"]


class RunnerError(Exception):
    """Root of the tree; the message is one line that says what to do."""


class SettingsError(RunnerError):
    """An environment variable is missing or cannot be read."""


class UploadError(RunnerError):
    """An output could not be stored."""


class WeightsError(RunnerError):
    """The weights are not where the environment says."""
