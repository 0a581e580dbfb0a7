"""What all kinds that add a bias share: shapes, chunks, batches, precision, gradients, JSON."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.encodings.alibi import ALiBi
from ropewalk.encodings.base import BiasModule, Encoding
from ropewalk.encodings.fire import FIRE
from ropewalk.encodings.kerple import KERPLE
from ropewalk.encodings.t5 import T5Bias
from ropewalk.errors import ArgumentError

HEADS = st.integers(1, 7)
ENCODINGS = st.one_of(
    st.builds(ALiBi, HEADS),
    st.builds(T5Bias, HEADS, st.sampled_from([4, 10, 32]), st.sampled_from([24, 100]), st.booleans()),
    st.builds(KERPLE, HEADS, st.sampled_from(["log", "power"])),
    st.builds(FIRE, HEADS, st.integers(1, 6), st.floats(0.05, 2.0), st.integers(1, 40)),
)
EACH = [ALiBi(3), T5Bias(3), T5Bias(3, bidirectional=True), KERPLE(3), KERPLE(3, "power"), FIRE(3, initial_L=20)]
POSITIONS = st.lists(st.integers(0, 3000), min_size=1, max_size=9).map(torch.tensor)
each = pytest.mark.parametrize("encoding", EACH, ids=repr)


def filled(encoding: Encoding) -> BiasModule:
    """The module with no number left at a start that would hide a mistake, such as zeros."""
    module = encoding.module()
    assert isinstance(module, BiasModule)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += torch.rand(parameter.shape)
    return module


def close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@given(encoding=ENCODINGS, of_queries=POSITIONS, of_keys=POSITIONS, cut=st.integers(0, 9))
def test_chunks_of_queries_and_keys_equal_the_whole(
    encoding: Encoding, of_queries: torch.Tensor, of_keys: torch.Tensor, cut: int
) -> None:
    module = filled(encoding)
    whole = module.bias(of_queries, of_keys)
    assert whole.shape == (module.num_heads, len(of_queries), len(of_keys)) and whole.dtype == torch.float32
    assert whole.isfinite().all()
    close(torch.cat([module.bias(part, of_keys) for part in (of_queries[:cut], of_queries[cut:])], 1), whole)
    close(torch.cat([module.bias(of_queries, part) for part in (of_keys[:cut], of_keys[cut:])], 2), whole)
    close(module.bias(of_queries[-1:], of_keys), whole[:, -1:])


@given(encoding=ENCODINGS, shift=st.integers(0, 10_000), of_queries=POSITIONS, of_keys=POSITIONS)
def test_relative_kinds_look_at_distance_alone(
    encoding: Encoding, shift: int, of_queries: torch.Tensor, of_keys: torch.Tensor
) -> None:
    module = filled(encoding)
    if module.is_relative:
        here = module.bias(of_queries, of_keys)
        assert torch.equal(module.bias(of_queries + shift, of_keys + shift), here)


@each
def test_a_batch_equals_its_rows(encoding: Encoding) -> None:
    module = filled(encoding)
    of_queries, of_keys = torch.randint(0, 99, (2, 4)), torch.randint(0, 99, (2, 5))
    both = module.bias(of_queries, of_keys)
    assert both.shape == (2, 3, 4, 5)
    for b in range(2):
        close(both[b], module.bias(of_queries[b], of_keys[b]))
        close(module.bias(of_queries, of_keys[0])[b], module.bias(of_queries[b], of_keys[0]))
        close(module.bias(of_queries[0], of_keys)[b], module.bias(of_queries[0], of_keys[b]))
    assert module.bias(of_queries[:1], of_keys[0]).shape == (1, 3, 4, 5)
    assert module.bias(of_queries[:, :0], of_keys).shape == (2, 3, 0, 5)


@each
def test_positions_of_any_integer_dtype(encoding: Encoding) -> None:
    module, positions = filled(encoding), torch.arange(9)
    for dtype in (torch.int32, torch.int16, torch.int8):
        assert torch.equal(module.bias(positions.to(dtype), positions.to(dtype)), module.bias(positions, positions))


@each
def test_biases_stay_float32_when_the_module_is_cast(encoding: Encoding) -> None:
    module, positions = filled(encoding), torch.arange(0, 900, 30)
    before = module.bias(positions, positions)
    after = module.to(torch.bfloat16).bias(positions, positions)
    assert after.dtype == torch.float32
    torch.testing.assert_close(after, before, rtol=2e-2 if list(module.parameters()) else 0, atol=2e-2)


@each
def test_autocast_leaves_biases_float32(encoding: Encoding) -> None:
    module, positions = filled(encoding), torch.arange(40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = module.bias(positions, positions)
    assert torch.equal(inside, module.bias(positions, positions)) and inside.is_contiguous()


@each
def test_no_device_is_needed_to_know_the_shape(encoding: Encoding) -> None:
    positions = torch.arange(4, device="meta")
    assert encoding.module().to("meta").bias(positions, positions).shape == (3, 4, 4)


@each
def test_gradients_reach_every_parameter(encoding: Encoding) -> None:
    module, positions = filled(encoding), torch.arange(0, 300)
    if isinstance(encoding, ALiBi):
        assert not list(module.parameters())
        return
    module.bias(positions, positions).pow(2).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.dtype == torch.float32 and parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


@each
def test_what_is_saved_is_all_there_is(encoding: Encoding) -> None:
    module, positions = filled(encoding), torch.arange(40)
    with torch.device("meta"):
        again = encoding.module()
    again = again.to_empty(device="cpu")
    again.load_state_dict(module.state_dict(), strict=True)
    assert torch.equal(again.bias(positions, positions), module.bias(positions, positions))
    assert dict(module.state_dict()).keys() == dict(module.named_parameters()).keys()
    assert repr(encoding) in repr(module)


@each
def test_the_config_gives_its_untrained_modules_bias(encoding: Encoding) -> None:
    positions = torch.arange(7)
    torch.manual_seed(3)
    module = encoding.module()
    torch.manual_seed(3)
    assert torch.equal(encoding.bias(positions, positions), module.bias(positions, positions))
    if hasattr(module, "reset_parameters"):
        before = {name: parameter.clone() for name, parameter in module.named_parameters()}
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += 1
        torch.manual_seed(3)
        module.reset_parameters()
        assert all(torch.equal(before[name], parameter) for name, parameter in module.named_parameters())


@each
def test_queries_and_keys_pass_untouched(encoding: Encoding) -> None:
    q, k = torch.randn(1, 3, 5, 4), torch.randn(1, 1, 5, 4)
    q2, k2 = encoding(q, k, torch.arange(5))
    assert q2 is q and k2 is k


@each
def test_compiled_whole(encoding: Encoding) -> None:
    module, positions = filled(encoding), torch.arange(30)
    compiled = torch.compile(module.bias, fullgraph=True, backend="aot_eager")
    close(compiled(positions, positions), module.bias(positions, positions))


@given(encoding=ENCODINGS)
def test_json_round_trip(encoding: Encoding) -> None:
    again = Encoding.from_dict(json.loads(json.dumps(encoding.to_dict())))
    assert again == encoding and hash(again) == hash(encoding)


@pytest.mark.parametrize("kind", [ALiBi, T5Bias, KERPLE, FIRE])
@pytest.mark.parametrize("num_heads", [0, -4, 2.0, True, None, "8"])
def test_wrong_head_counts_are_refused(kind: type[Encoding], num_heads: object) -> None:
    with pytest.raises(ArgumentError, match=r"^num_heads=") as caught:
        kind(num_heads)  # type: ignore[call-arg]
    assert "\n" not in str(caught.value)
