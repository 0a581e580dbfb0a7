"""The encodings, one file each; importing this package fills the registry."""

from ropewalk.encodings import alibi, dope, fire, kerple, nope, per_layer, pope, rope, t5

__all__ = ["alibi", "dope", "fire", "kerple", "nope", "per_layer", "pope", "rope", "t5"]
