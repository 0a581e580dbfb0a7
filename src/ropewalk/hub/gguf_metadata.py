"""What a GGUF file says of positions, which transformers' reader takes in part only; read here as llama.cpp does."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from ropewalk.errors import ArgumentError

_FREQUENCIES, _LONG, _SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
_ORIGINAL = "load the model from its folder or hub id, whose config.json says the same to transformers"
_INEXACT = f"can't be read exactly from a GGUF file; {_ORIGINAL}"
# What a file may say under its architecture's `rope.`; whatever else stands there is refused.
_READ = {
    *("dimension_count", "dimension_count_swa", "freq_base", "freq_base_swa", "scale_linear"),
    *("scaling.type", "scaling.factor", "scaling.original_context_length", "scaling.attn_factor"),
    *("scaling.yarn_beta_fast", "scaling.yarn_beta_slow"),
    "scaling.finetuned",  # says how the model was made; nothing turns by it
}
# Fields that only some architectures read, with the values that change nothing wherever they are read.
_NEUTRAL = {"scaling.yarn_log_multiplier": 0.0, "scaling.yarn_attn_factor": 1.0, "scaling.alpha": 0.0}
# Architectures whose long and short divisors llama.cpp reads whatever the file's scaling type.
_WITH_LONG = {"phi3"}
# Scalings that llama.cpp applies to the layers without a window only.
_OF_FULL_LAYERS = {("linear", "gemma3")}
# llama.cpp's base where a file has none.
_BASE = 10000.0
# What stays of a config's own rotation when a file gives another.
_KEPT = ("rope_theta", "partial_rotary_factor")


def read_rotation(file: Path) -> Rotation:
    """What a GGUF file says of positions.

    Raises:
        ArgumentError: one part of a split model; a field or tensor that can't be said exactly in transformers' terms.
    """
    from gguf import GGUFReader, dequantize

    reader: Any = GGUFReader(str(file))
    # A vocabulary takes seconds to unpack.
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
    _refuse_part(file, fields)
    tensors = {
        tensor.name: [float(value) for value in dequantize(tensor.data, tensor.tensor_type)]
        for tensor in reader.tensors
        if tensor.name in (_FREQUENCIES, _LONG, _SHORT)
    }
    return Rotation(fields, tensors)


def _refuse_part(file: Path, fields: dict[str, Any]) -> None:
    """Refuse one part of a split model: by its fields, or by its name where they don't say."""
    named = re.search(r"-\d{5}-of-(\d{5})$", file.stem)
    count = int(fields["split.count"] if "split.count" in fields else named[1] if named else 1)
    if count > 1:
        remedy = f"is one part of {count}; join them first: llama-gguf-split --merge FIRST_PART WHOLE"
        raise ArgumentError("model", str(file), remedy)


class Rotation:
    """How a file's model turns: by its fields under its architecture's `rope.`, and by its tensors of divisors.

    llama.cpp turns pair i of n channels at position p by p * base^(-2i/n) / (divisor_i * factor), and multiplies
    queries and keys by an attention factor. YaRN scales only the pairs that turn slowly.

    Raises:
        ArgumentError: a field or tensor that can't be said exactly in transformers' terms, or that isn't known.
    """

    def __init__(self, fields: dict[str, Any], tensors: dict[str, list[float]]):
        self._architecture = str(fields.get("general.architecture", "llama"))
        prefix = f"{self._architecture}.rope."
        self._fields = {name[len(prefix) :]: value for name, value in fields.items() if name.startswith(prefix)}
        self._length = int(fields.get(f"{self._architecture}.context_length", 0))
        self._kind = str(self._fields.get("scaling.type", "linear"))
        self._refuse_unknown()
        self._factor = self._read_factor()
        self._attention = float(self._fields.get("scaling.attn_factor", 1.0))
        self._tensors = tensors
        # Divisors of 1 change nothing.
        self._divisors = [name for name, values in tensors.items() if any(value != 1 for value in values)]
        self._rule = self._read_rule()

    def into(self, config: Any) -> bool:
        """Make a config turn as the file says; False if it does so already.

        Raises:
            ArgumentError: the architecture has no such rotation, or has one for each kind of layer and the file
                doesn't say which it means.
        """
        held = getattr(config, "rope_parameters", None)
        if not held:
            if self._rule["rope_type"] != "default":
                raise self._refused_rule("this architecture doesn't turn by position")
            return False
        if any(isinstance(value, dict) for value in held.values()):
            return self._into_kinds(held, config)
        for name in ("freq_base_swa", "dimension_count_swa"):
            if name in self._fields and self._fields[name] != self._fields.get(name.removesuffix("_swa")):
                raise self._refused(name, f"in transformers this architecture turns every layer alike; {_ORIGINAL}")
        wanted = {"rope_theta": float(self._fields.get("freq_base", _BASE)), **self._rule, **self._share(held, config)}
        mended = {name: held[name] for name in _KEPT if name in held} | wanted
        if mended == held:
            return False
        config.rope_parameters = mended
        self._check(config, mended)
        return True

    def _into_kinds(self, held: dict[str, Any], config: Any) -> bool:
        """The same for an architecture whose layers with a window have a rotation of their own."""
        kind_of_rule = self._rule["rope_type"]
        if kind_of_rule != "default" and (kind_of_rule, self._architecture) not in _OF_FULL_LAYERS:
            raise self._refused_rule("this architecture has a rotation for each kind of layer")
        sizes: set[int] = {getattr(config, name, None) or 0 for name in ("head_dim", "global_head_dim")} - {0}
        for name in ("dimension_count", "dimension_count_swa"):
            if sizes and name in self._fields and self._fields[name] not in sizes:
                raise self._refused(name, f"in transformers a head has {min(sizes)} channels here; {_ORIGINAL}")
        mended = {kind: dict(of_kind) for kind, of_kind in held.items()}
        for kind, name in (("full_attention", "freq_base"), ("sliding_attention", "freq_base_swa")):
            if name in self._fields and kind in mended:
                mended[kind]["rope_theta"] = float(self._fields[name])
        if kind_of_rule != "default":
            mended["full_attention"] |= self._rule
        if mended == held:
            return False
        config.rope_parameters = mended
        return True

    def _share(self, held: dict[str, Any], config: Any) -> dict[str, float]:
        """The share of a head's channels that turn, where the file's isn't the config's."""
        channels = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        turned = int(self._fields.get("dimension_count", channels))
        if (lists := self._rule.get("long_factor")) and len(lists) != turned // 2:
            has = f"{len(lists)} divisors for {turned} channels that turn; get the file again"
            raise ArgumentError(self._divisors[0], "other than 1", has)
        now = int(channels * held.get("partial_rotary_factor", 1.0))
        if now == turned:
            return {}
        share = turned / channels
        if "partial_rotary_factor" not in held or not 0 < share <= 1 or int(channels * share) != turned:
            has = f"in transformers {now} of a head's {channels} channels turn here"
            raise ArgumentError(f"{self._architecture}.rope.dimension_count", turned, f"{has}; {_ORIGINAL}")
        return {"partial_rotary_factor": share}

    def _check(self, config: Any, mended: dict[str, Any]) -> None:
        """Refuse a rotation that the architecture's config doesn't keep when it is saved and loaded."""
        if getattr(config, "original_max_position_embeddings", None) and "original_max_position_embeddings" in mended:
            config.original_max_position_embeddings = mended["original_max_position_embeddings"]
        try:
            again = type(config).from_dict(config.to_dict()).rope_parameters
        except Exception as error:  # each architecture checks its config in its own way
            raise self._refused_rule("this architecture has no such rotation in transformers") from error
        if again != mended:
            raise self._refused_rule("this architecture has no such rotation in transformers")

    def _refused(self, name: str, remedy: str) -> ArgumentError:
        return ArgumentError(f"{self._architecture}.rope.{name}", self._fields.get(name), remedy)

    def _refused_rule(self, reason: str) -> ArgumentError:
        """The error for a scaling or divisors that can't be had, by the field or tensor that asks for them."""
        if self._divisors:
            return ArgumentError(self._divisors[0], "other than 1", f"{reason}; {_ORIGINAL}")
        names = ("scaling.type", "scaling.factor", "scale_linear")
        return self._refused(next((name for name in names if name in self._fields), names[0]), f"{reason}; {_ORIGINAL}")

    def _refuse_unknown(self) -> None:
        for name, value in self._fields.items():
            neutral = _NEUTRAL.get(name)
            if name == "scaling.yarn_ext_factor":  # how much of YaRN is applied; below 0, as the scaling type says
                neutral = value if value < 0 else float(self._kind == "yarn")
            if name not in _READ and (neutral is None or value != neutral):
                raise self._refused(name, _INEXACT)

    def _read_factor(self) -> float:
        """How much slower everything turns; the old name counts where the new one is absent, and 0 is no scaling."""
        name = "scaling.factor" if "scaling.factor" in self._fields else "scale_linear"
        factor = float(self._fields.get(name, 0.0)) or 1.0
        if not (math.isfinite(factor) and factor > 0):
            raise self._refused(name, "isn't a positive number; get the file again")
        return 1.0 if self._kind == "none" else factor

    def _read_rule(self) -> dict[str, Any]:
        """The rotation without its base and channels."""
        if self._kind not in ("none", "linear", "yarn", "longrope"):
            raise self._refused("scaling.type", _INEXACT)
        if self._kind == "longrope" or (self._architecture in _WITH_LONG and {_LONG, _SHORT} & set(self._divisors)):
            return self._longrope(_SHORT, _LONG)
        if self._divisors:
            return self._longrope(_FREQUENCIES, _FREQUENCIES)
        if self._kind == "yarn":
            return self._yarn()
        if self._attention != 1.0:
            raise self._refused("scaling.attn_factor", f"without YaRN or divisors it {_INEXACT}")
        return {"rope_type": "default"} if self._factor == 1.0 else {"rope_type": "linear", "factor": self._factor}

    def _longrope(self, short: str, long: str) -> dict[str, Any]:
        """Divisors for each pair. One list at every length is part of how a model was trained, not of a stretch.

        Of two lists llama.cpp takes the long one where its context is longer than the original length, transformers
        where the input is: the same for an input that fills the context.
        """
        others = [name for name in self._divisors if name not in (short, long)]
        if others or self._kind == "yarn":
            raise ArgumentError((others or self._divisors)[0], "other than 1", f"with this scaling type it {_INEXACT}")
        if lacks := [name for name in (short, long) if name not in self._tensors]:
            raise self._refused("scaling.type", f"the tensor {lacks[0]} is missing; {_ORIGINAL}")
        return {
            "rope_type": "longrope",
            "short_factor": [value * self._factor for value in self._tensors[short]],
            "long_factor": [value * self._factor for value in self._tensors[long]],
            "factor": 1.0,
            "attention_factor": self._attention,
            "original_max_position_embeddings": self._original() if short != long else self._length,
        }

    def _yarn(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "rope_type": "yarn",
            "factor": self._factor,
            "original_max_position_embeddings": self._original(),
        }
        if "scaling.attn_factor" in self._fields:
            # llama.cpp multiplies YaRN's own temperature by it.
            found["attention_factor"] = self._attention * (0.1 * math.log(max(self._factor, 1.0)) + 1.0)
        for name, ours in (("scaling.yarn_beta_fast", "beta_fast"), ("scaling.yarn_beta_slow", "beta_slow")):
            if name in self._fields:
                found[ours] = float(self._fields[name])
        return found

    def _original(self) -> int:
        """The length of training; that of the context where the file doesn't say."""
        name = "scaling.original_context_length"
        original = int(self._fields.get(name, self._length))
        if original <= 0:
            raise self._refused(name, "isn't a positive length; get the file again")
        return original
