"""ropewalk: positional encodings for Transformers, and repairs of trained ones that read too short."""

from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.nope import NoPE
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.rope import RoPE
from ropewalk.frequencies import (
    NTK,
    CoPE,
    DynamicNTK,
    Given,
    Linear,
    Llama3,
    LongRoPE,
    NTKByParts,
    Resonance,
    YaRN,
)
from ropewalk.heads import HeadSelection

__version__ = "0.1.0"
