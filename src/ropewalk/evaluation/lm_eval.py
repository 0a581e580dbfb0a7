"""A model with a plan inside lm-evaluation-harness, by the name `ropewalk`. Needs the extra `harness`."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from lm_eval.api.registry import model_registry, register_model
from lm_eval.models.huggingface import HFLM

from ropewalk.errors import ArgumentError, unknown_name
from ropewalk.hub.fingerprint import describe
from ropewalk.hub.loading import load_model
from ropewalk.hub.names import first_line
from ropewalk.hub.plan import Plan

NAME = "ropewalk"
# Arguments of the harness's own Hugging Face model that say how weights are loaded, which is done here.
_LOADING = ("parallelize", "tp_plan", "peft", "delta", "autogptq", "gptqmodel", "gguf_file", "subfolder")
# Parameters of the harness's model that `PlannedLM` sets itself.
_GIVEN = ("self", "kwargs", "backend")


class PlannedLM(HFLM):  # type: ignore[misc, unused-ignore]
    """The harness's Hugging Face model on whatever `load_model` takes, with a plan installed.

    A plan made with `when="long"` applies to a pass that is longer than the training length, padding of its batch
    included: give batch_size=1, or when=always, where that matters.

    Args:
        pretrained: `smollm2`, a GGUF file, a folder (its own encoding comes back too) or a hub id.
        plan: a plan's folder or hub id; none when None.
        when: `long` or `always`, in place of the plan's own.
        revision: of a hub repository.
        dtype: a torch dtype's name, or `auto`.
        device: a torch device's name; a GPU when None and there is one.
        trust_remote_code: whether the model may run code that it brings along.
        max_length: tokens of the longest prompt, answer included; the plan's target length when None, without a plan
            the model's own.
        tokenizer: a folder or hub id in place of the model's own tokenizer, or a tokenizer; RULER's tasks need a name
            that transformers can load, which `smollm2` and GGUF files don't have.
        rest: the other arguments of the harness's model, such as batch_size.

    Raises:
        ArgumentError: as `load_model`, for an unknown argument, and for arguments that say how weights are loaded in
            other ways.
    """

    def __init__(
        self,
        pretrained: str,
        plan: str | None = None,
        when: str | None = None,
        revision: str | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | None = None,
        trust_remote_code: bool = False,
        max_length: int | None = None,
        tokenizer: Any = None,
        **rest: Any,
    ):
        _check_names(rest)
        for name in _LOADING:
            if rest.get(name):
                raise ArgumentError(name, rest[name], f"the model {NAME} loads by itself; leave it out")
        if plan is None and when is not None:
            raise ArgumentError("when", when, "says when a plan applies; give plan too")
        if isinstance(tokenizer, str):
            tokenizer = _named_tokenizer(tokenizer, trust_remote_code)
        # The harness says "cuda:0" where nobody said anything, also on machines without one.
        place = None if device is not None and device.startswith("cuda") and not torch.cuda.is_available() else device
        model, own_tokenizer = load_model(pretrained, dtype, trust_remote_code, revision, place)
        self._plan = None if plan is None else Plan.from_pretrained(plan)
        self._when = None
        if self._plan is not None:
            self._plan.install(model, when)
            self._when = when or self._plan.when
            max_length = max_length or self._plan.target_length
        super().__init__(model, tokenizer=tokenizer or own_tokenizer, backend="causal", max_length=max_length, **rest)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results: the model's fingerprint, and the plan."""
        about = describe(self._model)
        found: dict[str, Any] = {
            "model_num_parameters": self._model.num_parameters(),
            "model_dtype": str(self._model.dtype),
            "model_revision": about["revision"],
            "model_fingerprint": about["fingerprint"],
        }
        if self._plan is not None:
            found["plan"] = {
                "encoding": self._plan.encoding.to_dict(),
                "target_length": self._plan.target_length,
                "when": self._when,
                "ropewalk_version": self._plan.ropewalk_version,
            }
        return found


def _check_names(arguments: dict[str, Any]) -> None:
    """Refuse arguments that the harness's model would take without a word and do nothing with."""
    known = {*inspect.signature(HFLM.__init__).parameters, *inspect.signature(PlannedLM.__init__).parameters}
    known -= {*_GIVEN, *_LOADING, "rest"}
    for name in arguments:
        if name not in known and name not in _LOADING:
            raise unknown_name("model_args", name, known)


def _named_tokenizer(name: str, trusted: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trusted)
    except (OSError, ValueError) as error:
        raise ArgumentError(
            "tokenizer", name, f"can't be loaded ({first_line(error)}); give a folder or hub id"
        ) from error


def register() -> None:
    """Make the model known to the harness under its name; a second time changes nothing."""
    if NAME not in model_registry:
        register_model(NAME)(PlannedLM)
