"""A clip in memory, and as an MP4."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

CHUNK_SAMPLES = 1024


@dataclass(frozen=True)
class Clip:
    """Frames uint8 (t, h, w, 3), h and w even; sound float32 (channels, samples) in -1 to 1, or None."""

    frames: NDArray[np.uint8]
    fps: float
    sound: NDArray[np.float32] | None = None
    sample_rate: int = 0

    def __post_init__(self) -> None:
        shape = self.frames.shape
        if len(shape) != 4 or shape[3] != 3 or shape[0] == 0 or shape[1] % 2 or shape[2] % 2:
            raise ValueError(f"frames have shape {shape}, not (t, h, w, 3) with h and w even")
        if self.sound is not None and (self.sound.ndim != 2 or self.sound.shape[0] not in (1, 2)):
            raise ValueError(f"sound has shape {self.sound.shape}, not (1 or 2, samples)")


def write_mp4(clip: Clip, path: Path) -> None:
    """Write a clip as H.264 with yuv420p and, where it has sound, AAC: what browsers play."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as file:
        rate = Fraction(clip.fps).limit_denominator(1001)
        video = file.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "medium"})
        video.height, video.width = clip.frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        audio = None
        if clip.sound is not None:
            layout = "mono" if clip.sound.shape[0] == 1 else "stereo"
            audio = file.add_stream("aac", rate=clip.sample_rate, layout=layout)
        for pixels in clip.frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        if audio is not None and clip.sound is not None:
            sound = np.clip(clip.sound, -1.0, 1.0).astype(np.float32)
            for start in range(0, sound.shape[1], CHUNK_SAMPLES):
                part = np.ascontiguousarray(sound[:, start : start + CHUNK_SAMPLES])
                chunk = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout)
                chunk.sample_rate, chunk.pts = clip.sample_rate, start
                file.mux(audio.encode(chunk))
            file.mux(audio.encode(None))
