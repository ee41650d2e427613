"""What a Cog predictor needs to be a runner: its weights, its progress, and where outputs go."""

from .archive import unpack
from .artifact import Artifact
from .errors import RunnerError, SettingsError, UploadError, WeightsError
from .prediction import prediction_id, progress, span
from .upload import upload
from .weights import weights_folder, weights_path

__all__ = [
    "Artifact",
    "RunnerError",
    "SettingsError",
    "UploadError",
    "WeightsError",
    "prediction_id",
    "progress",
    "span",
    "unpack",
    "upload",
    "weights_folder",
    "weights_path",
]
