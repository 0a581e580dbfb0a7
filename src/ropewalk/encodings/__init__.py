"""The encodings, one file each; importing this package fills the registry."""

from ropewalk.encodings import dope, nope, per_layer, rope

__all__ = ["dope", "nope", "per_layer", "rope"]
