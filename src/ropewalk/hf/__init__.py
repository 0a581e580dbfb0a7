"""The seam between encodings and Hugging Face models."""

from ropewalk.hf.handle import Handle, handle_of
from ropewalk.hf.seam import install, installed

__all__ = ["Handle", "handle_of", "install", "installed"]
