"""Sound as a WAV file."""

import io
import wave

import numpy as np
from numpy.typing import NDArray


def encode_wav(sound: NDArray[np.float32], sample_rate: int) -> bytes:
    """Encode sound (samples,), (channels, samples) or (1, channels, samples) in -1 to 1 as 16-bit WAV.

    Raises:
        ValueError: any other shape, or more than two channels.
    """
    samples = np.asarray(sound, np.float32)
    if samples.ndim == 3 and samples.shape[0] == 1:
        samples = samples[0]
    samples = np.atleast_2d(samples)
    if samples.ndim != 2 or samples.shape[0] not in (1, 2):
        raise ValueError(f"sound has shape {np.shape(sound)}, not (1 or 2 channels, samples)")
    levels = (np.nan_to_num(np.clip(samples, -1.0, 1.0)) * 32767.0).round().astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(samples.shape[0])
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(levels.T.tobytes())
    return buffer.getvalue()
