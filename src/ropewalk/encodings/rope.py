"""RoPE: queries and keys rotated by their positions (Su et al., arXiv 2104.09864)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from ropewalk.encodings.base import Encoding, RotaryModule, Tables
from ropewalk.errors import ArgumentError, unknown_name
from ropewalk.scaling.base import Rule, Schedule, default_schedule
from ropewalk.validation import check_base, check_rotary_dim

LAYOUTS = ("half", "interleaved")


@dataclasses.dataclass(frozen=True)
class RoPE(Encoding):
    """Rotary encoding: pair c of the token at position m turns by m * theta_c (RoFormer eq. 15 and 34).

    `head_dim` is the head size; the first `rotary_dim` channels (all, when None) turn and the rest match by
    content alone. `layout` says which channels form pair c: "half" c and c + rotary_dim/2 (Hugging Face),
    "interleaved" 2c and 2c + 1 (the paper). `rule` is a length rule or None. Scores depend on n - m alone.
    Angles are float32. Raises ArgumentError for odd or wrong sizes, an unknown layout or a base that isn't
    over 1.
    """

    kind: ClassVar[str] = "rope"
    summary: ClassVar[str] = "rotates pairs of channels by position"
    head_dim: int
    base: float = 10000.0
    rule: Rule | None = None
    layout: str = "half"
    rotary_dim: int | None = None

    def __post_init__(self) -> None:
        check_rotary_dim("head_dim", self.head_dim)
        check_base(self.base)
        if self.rule is not None and not isinstance(self.rule, Rule):
            raise ArgumentError("rule", self.rule, "give a length rule, such as YaRN(...), or None")
        if self.layout not in LAYOUTS:
            raise unknown_name("layout", self.layout, LAYOUTS)
        if self.rotary_dim is not None:
            check_rotary_dim("rotary_dim", self.rotary_dim)
            if self.rotary_dim > self.head_dim:
                raise ArgumentError("rotary_dim", self.rotary_dim, f"give at most head_dim, {self.head_dim}")
        self.schedule()  # a rule that doesn't fit these sizes is refused here, not at the first call

    @property
    def width(self) -> int:
        """How many channels turn: rotary_dim, or head_dim when that is None."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @classmethod
    def from_model(cls, model: torch.nn.Module) -> Encoding:
        """A Hugging Face model's own rotation: base, rule, layout and width; a PerLayer where layers differ.

        Raises UnsupportedModelError for a model without rotary attention that can be served.
        """
        from ropewalk.encodings.model_rotation import own_rotation  # it imports this module

        return own_rotation(model)

    def schedule(self) -> Schedule:
        """Frequencies (width / 2,) float32 and the attention scale, after the length rule."""
        if self.rule is None:
            return default_schedule(self.width, self.base)
        return self.rule.schedule(self.width, self.base)

    def tables(
        self, positions: Tensor, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> tuple[Tensor, Tensor]:
        """cos and sin, each (N, width) or (B, N, width) of `dtype`, for integer positions (N,) or (B, N).

        Already spread over the channels of the layout and multiplied by the attention scale. Worked out in
        float32 on `device` (that of the positions when None).
        """
        schedule = self.schedule()
        positions = positions if device is None else positions.to(device)
        frequencies = schedule.frequencies.to(positions.device)
        return rotation_tables(positions, frequencies, schedule.attention_scale, self.layout, dtype)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (B, H, N, d) with its first channels turned by what `tables` gave, same shape."""
        return rotate(x, cos, sin, self.layout)

    def module(self) -> RoPEModule:
        """The module, called as `module(q, k, positions) -> (q2, k2)`."""
        return RoPEModule(self)

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> Encoding:
        if isinstance(fields.get("rule"), dict):
            fields = {**fields, "rule": Rule.from_dict(fields["rule"])}
        return super()._from_fields(fields)


class RoPEModule(RotaryModule):
    """RoPE with its frequencies at hand: `frequencies` (width / 2,) float32, a buffer that isn't saved.

    The frequencies follow the module to a device, but stay float32 when the module is cast.
    """

    frequencies: Tensor

    def __init__(self, encoding: RoPE):
        super().__init__()
        self.encoding = encoding
        self.head_dim = encoding.head_dim
        schedule = encoding.schedule()
        self.attention_scale = schedule.attention_scale
        self.register_buffer("frequencies", schedule.frequencies, persistent=False)

    @property
    def table_key(self) -> RoPE:
        """RoPEs with equal configs have equal tables."""
        return self.encoding

    def encode(
        self, q: Tensor, k: Tensor, positions: tuple[Tensor, Tensor], tables: tuple[Tables, Tables]
    ) -> tuple[Tensor, Tensor]:
        """q (B, H, N, d) and k (B, G, M, d) turned by the tables; shapes and dtypes are kept."""
        return self.rotate(q, *tables[0]), self.rotate(k, *tables[1])

    def tables(self, positions: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """cos and sin, each (N, width) or (B, N, width) of `dtype`, on the module's device."""
        return rotation_tables(positions, self.frequencies, self.attention_scale, self.encoding.layout, dtype)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (B, H, N, d) with its first channels turned by the tables, same shape."""
        return rotate(x, cos, sin, self.encoding.layout)

    def extra_repr(self) -> str:
        """The config, for print(model)."""
        return repr(self.encoding)

    def constants(self) -> dict[str, Tensor]:
        return {"frequencies": self.encoding.schedule().frequencies}


def rotation_tables(
    positions: Tensor, frequencies: Tensor, attention_scale: float, layout: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin of positions (..., N) times frequencies (r/2,), each (..., N, r), a number a channel.

    Angles, cos, sin and the scale are float32; the result is then cast to `dtype`.
    """
    angles = positions[..., None].float() * frequencies
    cos, sin = angles.cos(), angles.sin()
    if attention_scale != 1.0:
        cos, sin = cos * attention_scale, sin * attention_scale
    return spread(cos.to(dtype), layout), spread(sin.to(dtype), layout)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, layout: str) -> Tensor:
    """x (B, H, N, d) turned by cos and sin, each (N, r) or (B, N, r), over its first r channels; same shape.

    x cos + x' sin with x' the pairs turned by a right angle (RoFormer eq. 34); channels from r on pass
    untouched.
    """
    if cos.dim() == 3:
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    width = cos.shape[-1]
    if width == x.shape[-1]:
        return (x * cos) + (_right_angle(x, layout) * sin)
    turned, passed = x[..., :width], x[..., width:]
    return torch.cat(((turned * cos) + (_right_angle(turned, layout) * sin), passed), dim=-1)


def _right_angle(x: Tensor, layout: str) -> Tensor:
    """Each pair (a, b) of x (..., r) as (-b, a)."""
    if layout == "half":
        a, b = x.chunk(2, dim=-1)
        return torch.cat((-b, a), dim=-1)
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def spread(table: Tensor, layout: str) -> Tensor:
    """(..., r/2), one number a pair, as (..., r), one a channel."""
    if layout == "half":
        return torch.cat((table, table), dim=-1)
    return table.repeat_interleave(2, dim=-1)
