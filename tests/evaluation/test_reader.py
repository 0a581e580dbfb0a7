from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from tests.data.tokenizers import byte_tokenizer, story
from tests.evaluation.tiny_models import WINDOW, tiny
from torch import nn

from ropewalk.data.text import text_of
from ropewalk.encodings.alibi import ALiBi
from ropewalk.encodings.base import Encoding
from ropewalk.encodings.dape import DAPE
from ropewalk.encodings.dape_v2 import DAPEv2
from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.fire import FIRE
from ropewalk.encodings.kerple import KERPLE
from ropewalk.encodings.pope import PoPE
from ropewalk.encodings.rope import RoPE
from ropewalk.encodings.rope_plus_plus import RoPEPlusPlus
from ropewalk.encodings.self_extend import SelfExtend
from ropewalk.encodings.t5 import T5Bias
from ropewalk.encodings.xpos import XPos
from ropewalk.evaluation import reader as read_module
from ropewalk.evaluation.likelihood import WORST_NLL
from ropewalk.evaluation.reader import Reader
from ropewalk.evaluation.statistics import Answer
from ropewalk.heads import HeadSelection
from ropewalk.patching import installed
from ropewalk.scaling import YaRN
from ropewalk.tasks.base import Prompt, Question
from ropewalk.tasks.needle import NeedleTask

TASK = NeedleTask(text_of(story(120), "story"), 260, depths=3)


def own_keys(model: nn.Module) -> Encoding:
    rope = RoPE.from_model(model)
    assert isinstance(rope, RoPE)
    rope = RoPE(rope.head_dim, rope.base, YaRN(2.0, 256), rotary_dim=rope.rotary_dim)
    return DoPE(rope, HeadSelection([(1, 0), (2, 3)]), mode="gaussian", original_length=256)


@pytest.mark.parametrize(
    ("family", "with_plan"),
    [
        ("Llama", False),
        ("Llama", True),
        ("Mistral", False),
        ("Gemma2", False),
        ("Gemma3", False),
        ("GPTNeoX", False),
    ],
)
def test_answers_are_those_of_a_fresh_model_for_each_question(family: str, with_plan: bool) -> None:
    model, tokenizer = tiny(family), byte_tokenizer()
    prompt = TASK.prompts(tokenizer, 1)[0]
    assert len(prompt.haystack_ids) > 2 * WINDOW
    with installed(model, own_keys(model)) if with_plan else nullcontext():
        found = Reader(model, tokenizer).answers(prompt, TASK.setting)
        assert [answer.key for answer in found] == [question.key for question in prompt.questions]
        for answer, question in zip(found, prompt.questions, strict=True):
            whole_prompt = torch.tensor([[*prompt.haystack_ids, *question.ids]])
            number = len(question.answer_ids)
            right = torch.tensor(question.answer_ids)
            with torch.no_grad():
                whole = model(input_ids=torch.cat([whole_prompt, right[None]], dim=1)).logits[0, -number - 1 : -1]
            assert answer.nll == pytest.approx(float(nn.functional.cross_entropy(whole, right)), abs=1e-5)
            said = model.generate(
                whole_prompt, max_new_tokens=number, min_new_tokens=number, do_sample=False, eos_token_id=None
            )
            assert answer.generated == tokenizer.decode(said[0, whole_prompt.shape[1] :])
            assert answer.is_exact == (said[0, whole_prompt.shape[1] :].tolist() == list(question.answer_ids))


ASKED: dict[str, tuple[Encoding, bool]] = {
    "rope": (RoPE(16), True),
    "pope": (PoPE(16, 2), True),
    "rope++": (RoPEPlusPlus(RoPE(16)), True),
    "alibi": (ALiBi(4), True),
    "t5": (T5Bias(4), True),
    "kerple": (KERPLE(4), True),
    "fire": (FIRE(4), True),
    "dape": (DAPE(4, KERPLE(4)), True),
    "dape_v2 of one key": (DAPEv2(4, KERPLE(4), kernel=1), True),
    "dape_v2": (DAPEv2(4, KERPLE(4)), False),
    "self_extend": (SelfExtend(RoPE(16), window=32), True),
    "xpos": (XPos(16), True),
}


@pytest.mark.parametrize("name", ASKED)
def test_questions_side_by_side_are_blind_to_each_other_under_every_encoding(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding, is_packed = ASKED[name]
    model = tiny("Llama")
    prompt = TASK.prompts(byte_tokenizer(), 1)[0]
    with installed(model, encoding):
        torch.manual_seed(0)
        for path, parameter in model.named_parameters():
            if "position_encoding" in path:
                parameter.data.normal_(std=0.3)
        reader = Reader(model, byte_tokenizer())
        cache = reader.read(prompt.haystack_ids)
        assert read_module.can_pack(model, cache) == is_packed
        found = reader.questions(prompt, TASK.setting, cache)
        monkeypatch.setattr(read_module, "can_pack", lambda *_: False)
        alone = reader.questions(prompt, TASK.setting, cache)
    assert [answer.generated for answer in found] == [answer.generated for answer in alone]
    assert [answer.nll for answer in found] == pytest.approx([answer.nll for answer in alone], abs=1e-5)


class Parrot(nn.Module):
    """Says after each token what a table tells, and 0 after others."""

    def __init__(self, table: dict[int, int], peak: float = 9.0):
        super().__init__()
        self.table, self.peak = table, peak
        self.anchor = nn.Parameter(torch.zeros(1))
        self.config = tiny("Llama").config

    def forward(self, input_ids: torch.Tensor, logits_to_keep: int = 0, **_: object) -> SimpleNamespace:
        logits = torch.zeros(1, input_ids.shape[1], 600)
        for place, token in enumerate(input_ids[0].tolist()):
            logits[0, place, self.table.get(token, 0)] = self.peak
        return SimpleNamespace(logits=logits[:, -logits_to_keep:])


def asked(parrot: Parrot, is_packed: bool, monkeypatch: pytest.MonkeyPatch) -> Answer:
    monkeypatch.setattr(read_module, "can_pack", lambda *_: is_packed)
    question = Question((10, 11), (20, 21, 22), "Oslo", "123", 0.5, (0, 1))
    prompt = Prompt("p", (5, 6, 7), (question,))
    return Reader(parrot, byte_tokenizer()).answers(prompt, "original")[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("is_packed", [True, False])
def test_a_right_answer_is_exact_and_a_wrong_start_is_continued_with_what_was_said(
    is_packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = asked(Parrot({11: 20, 20: 21, 21: 22}), is_packed, monkeypatch)
    assert right.is_exact and right.nll < 0.1
    # After a wrong token the parrot says other things than after the right one.
    wrong = asked(Parrot({11: 20, 20: 31, 31: 32, 21: 22}), is_packed, monkeypatch)
    assert not wrong.is_exact
    assert wrong.generated == byte_tokenizer().decode([20, 31, 32])


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("peak", [float("nan"), float("inf"), 1e6])
def test_logits_that_overflow_count_as_a_very_unlikely_answer(
    peak: float, is_packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = asked(Parrot({}, peak), is_packed, monkeypatch)
    assert answer.nll == WORST_NLL and not answer.is_exact
