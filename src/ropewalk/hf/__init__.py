"""The seam between encodings and Hugging Face models."""

from ropewalk.hf.seam import Handle, install, installed

__all__ = ["Handle", "install", "installed"]
