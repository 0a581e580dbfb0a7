"""Does a model compute the same with its own rotation put in through the seam? Asked before anything is served."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.errors import UnsupportedModelError

_TOKENS = 6
_served: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def check_served(model: nn.Module, installed_plain: Callable[[], AbstractContextManager[Any]]) -> None:
    """Compare a short forward pass with and without the seam; a model that passed once isn't asked again.

    `installed_plain` gives a context in which the model runs its own rotation through the seam.

    Raises:
        UnsupportedModelError: the passes differ or the second one fails; the model is left as it was.
    """
    if model in _served or any(p.device.type == "meta" for p in model.parameters()):
        return
    name = type(model).__name__
    with _at_rest(model):
        before = _short_pass(model)
        try:
            with installed_plain():
                after = _short_pass(model)
        except Exception as error:
            raise UnsupportedModelError(
                f"{name} fails with its own rotation put in through the seam ({type(error).__name__}: {error}); "
                "it can't be served"
            ) from error
    low_precision = before.dtype in (torch.bfloat16, torch.float16)
    tolerance = 5e-2 if low_precision else 1e-4
    scale = float(before.float().abs().max()) or 1.0
    difference = float((before.float() - after.float()).abs().max()) / scale
    if not difference <= tolerance:
        raise UnsupportedModelError(
            f"{name} computes otherwise with its own rotation put in through the seam (by {difference:.1e} of its "
            "largest output); it can't be served"
        )
    _served.add(model)


def _short_pass(model: nn.Module) -> Tensor:
    device = next(model.parameters()).device
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    tokens = (torch.arange(_TOKENS, device=device) * 7 + 3) % vocabulary
    output = model(input_ids=tokens[None], use_cache=False)
    logits: Tensor = output.logits if hasattr(output, "logits") else output.last_hidden_state
    return logits


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[None]:
    """No gradients, no dropout and no use of the caller's random numbers; all as before on exit."""
    training = [module for module in model.modules() if module.training]
    devices = [p.device for p in model.parameters() if p.device.type == "cuda"]
    with torch.no_grad(), torch.random.fork_rng(devices=sorted({d.index or 0 for d in devices})):
        model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True
