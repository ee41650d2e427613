"""The parts of a path that name a model and its version."""

from typing import Annotated

from fastapi import Path

__all__ = ["Name", "Owner", "Version"]

Owner = Annotated[str, Path(max_length=1024, examples=["vyvo"])]
Name = Annotated[str, Path(max_length=1024, examples=["digits"])]
Version = Annotated[str, Path(max_length=1024, examples=["v1"])]
