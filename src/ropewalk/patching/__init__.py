"""The seam between encodings and Hugging Face models."""

from ropewalk.patching.handle import Handle, handle_of
from ropewalk.patching.install import install, installed

__all__ = ["Handle", "handle_of", "install", "installed"]
