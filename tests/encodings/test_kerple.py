"""KERPLE: the paper's kernels, bounds that hold, starts like the authors', refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import kerple as reference

from ropewalk.encodings.kerple import FORMS, KERPLE
from ropewalk.errors import ArgumentError


@pytest.mark.parametrize("form", FORMS)
def test_the_papers_kernels(form: str) -> None:
    module = KERPLE(5, form).module()
    of_queries, of_keys = torch.tensor([0, 5, 1000]), torch.tensor([0, 1, 5, 999, 1300])
    ours, r1, r2 = module.bias(of_queries, of_keys), module.r1.tolist(), module.r2.tolist()
    for h in range(5):
        for n, query in enumerate(of_queries.tolist()):
            expected = [reference.bias(form, r1[h], r2[h], query, key) for key in of_keys.tolist()]
            torch.testing.assert_close(ours[h, n], torch.tensor(expected), rtol=1e-5, atol=1e-5)


@given(form=st.sampled_from(FORMS), raw1=st.floats(-1e6, 1e6), raw2=st.floats(-1e6, 1e6))
def test_the_bounds_hold_however_far_the_steps(form: str, raw1: float, raw2: float) -> None:
    module = KERPLE(1, form).module()
    with torch.no_grad():
        module.raw_r1.fill_(raw1)
        module.raw_r2.fill_(raw2)
    assert module.r1 > 0 and module.r2 > 0 and (form == "log" or module.r2 <= 2)
    bias = module.bias(torch.tensor([100_000]), torch.tensor([0, 50_000, 99_999, 100_000]))[0, 0]
    assert bias.isfinite().all() and (bias.diff() >= 0).all() and bias[0] < bias[-1] == 0


@pytest.mark.parametrize("form", FORMS)
def test_a_step_too_far_is_taken_back(form: str) -> None:
    module = KERPLE(1, form).module()
    optimiser = torch.optim.SGD(module.parameters(), lr=1.0)
    with torch.no_grad():
        module.raw_r1.fill_(-5.0)
        module.raw_r2.fill_(-5.0)
    before = module.r1.item(), module.r2.item()
    for _ in range(20):
        optimiser.zero_grad()
        module.bias(torch.tensor([9]), torch.tensor([0])).sum().backward()
        optimiser.step()
    assert module.r1.item() > before[0] and module.r2.item() > before[1]


@pytest.mark.parametrize(("form", "most1", "most2"), [("log", 2.0, 1.0), ("power", 1.0, 2.0)])
def test_starts_are_uniform_like_the_authors(form: str, most1: float, most2: float) -> None:
    module = KERPLE(4000, form).module()
    for r, most in ((module.r1, most1), (module.r2, most2)):
        assert r.min() >= 0.0199 and r.max() <= most
        torch.testing.assert_close(r.mean(), torch.tensor(most / 2 + 0.01), rtol=0.05, atol=0)
        torch.testing.assert_close(r.std(), torch.tensor((most - 0.02) / 12**0.5), rtol=0.05, atol=0)


def test_starts_follow_the_seed_and_differ_by_head() -> None:
    torch.manual_seed(5)
    first = KERPLE(4).module()
    torch.manual_seed(5)
    again = KERPLE(4).module()
    assert torch.equal(first.r1, again.r1) and torch.equal(first.r2, again.r2)
    assert len(set(first.r1.tolist())) == 4 and not torch.equal(KERPLE(4).module().r1, first.r1)


def test_a_forward_changes_no_weight() -> None:
    module = KERPLE(3, "power").module()
    with torch.no_grad():
        module.raw_r2.fill_(-40.0)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.bias(torch.arange(5), torch.arange(5))
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("form", ["exp", "", None, 3])
def test_unknown_forms_are_refused(form: object) -> None:
    with pytest.raises(ArgumentError, match=r"^form=") as caught:
        KERPLE(4, form)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
