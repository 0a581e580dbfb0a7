"""Every architecture family that the seam serves: its weights are heard as they are, or it is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.hf import families
from tests.reference import inspection as oracle

from ropewalk.analysis.inspect import inspect
from ropewalk.errors import UnsupportedModelError

TOKENS, NEEDLE = 90, (10, 14)
REFUSED = {
    "diffllama": "attends more than once",  # two maps of one head, subtracted
    "falcon": "doesn't look up ALL_ATTENTION_FUNCTIONS",
    "mimo_v2_flash": "differ in number or size",
}
SERVED = sorted(set(families.SERVED) - set(REFUSED))


def built(name: str) -> Any:
    # A window longer than what counts as recent, or there would be nothing to see in it.
    changes: dict[str, Any] = {"sliding_window": 30} if "sliding_window" in families.SERVED[name] else {}
    if name == "gemma2":  # a cap that these scores do reach
        changes["attn_logit_softcapping"] = 0.5
    return families.build(name, **changes)


@pytest.mark.parametrize("name", SERVED)
def test_sinks_and_needle_are_those_of_the_layers_own_matrices(name: str) -> None:
    model, ids = built(name), families.tokens(1, TOKENS)
    found = inspect(model, ids, NEEDLE)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(ids, output_attentions=True, use_cache=False).attentions
    for row, layer in enumerate(found.layers):
        for head in range(4):
            matrix = weights[layer][0, head].double().numpy()
            expected = oracle.sinks(matrix, 4)
            for kind in ("first", "few", "largest"):
                assert float(found[f"sinks.{kind}"][row, head]) == pytest.approx(expected[kind], abs=1e-5), kind
            mass = float(matrix[-1, slice(*NEEDLE)].sum())
            assert float(found["needle.before"][row, head]) == pytest.approx(mass, abs=1e-5)
    turning = families.ROTATING_LAYERS.get(name, found.layers)
    assert found["frequencies"].gt(0).all(-1).tolist() == [layer in turning for layer in found.layers]


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_by_name_and_left_as_they_were(name: str) -> None:
    model = built(name)
    with pytest.raises(UnsupportedModelError, match=REFUSED[name]):
        inspect(model, families.tokens(1, TOKENS))
    assert not any("forward" in module.__dict__ for module in model.modules())
