"""What a language model knows without training: minimal pairs by likelihood, and last words."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.data.minimal_pairs import Pair, Passage
from ropewalk.errors import ArgumentError
from ropewalk.evaluation.arms import Arm
from ropewalk.evaluation.evaluated_model import Subjects
from ropewalk.evaluation.likelihood import bounded
from ropewalk.evaluation.missing import records_of
from ropewalk.evaluation.records import Store
from ropewalk.evaluation.statistics import Answer

# Measured and recorded together, so what a stopped run loses at most.
BLOCK = 100
# A batch has about this many logits at the most: 128 MiB in float32.
MOST_LOGITS = 1 << 25


@dataclasses.dataclass(frozen=True)
class Found:
    """An arm's answers: test set by test set in the order of their pairs, and in the order of the passages.

    A pair's answer is the sentence that the model finds likelier, filed under its test set as `setting`; `nll` is that
    of the good sentence's tokens, in sum. A passage's answer is the model's last word as far as it is right, and the
    first wrong token; `nll` is nats a token of the right word.
    """

    arm: Arm
    pairs: tuple[Answer, ...]
    passages: tuple[Answer, ...]


@dataclasses.dataclass(frozen=True)
class Block:
    """Up to `BLOCK` questions of a kind, pairs or words: (number within its test set, from 0 on; pair or passage)."""

    kind: str
    items: tuple[tuple[int, Any], ...]

    @property
    def identity(self) -> str:
        """Its texts' SHA-256, 16 hex digits, after its kind."""
        texts = [(number, dataclasses.astuple(item)) for number, item in self.items]
        return f"{self.kind}/{hashlib.sha256(repr(texts).encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def blocks(pairs: Sequence[Pair], passages: Sequence[Passage]) -> list[Block]:
    """Both cut into blocks, in their order, test set by test set: what comes before one doesn't change its blocks."""
    numbered = [("pairs", tuple(enumerate(held))) for held in by_test_set(pairs).values()]
    kinds: list[tuple[str, tuple[tuple[int, Any], ...]]] = [*numbered, ("words", tuple(enumerate(passages)))]
    return [Block(kind, held[first : first + BLOCK]) for kind, held in kinds for first in range(0, len(held), BLOCK)]


def by_test_set(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """The pairs by test set, both in their order."""
    sets: dict[str, list[Pair]] = {}
    for pair in pairs:
        sets.setdefault(pair.test_set, []).append(pair)
    return sets


def check(arms: Sequence[Arm], work: Sequence[Block]) -> dict[str, float]:
    """Refuse what a model can't read before anything is measured; the share of unknown tokens by each model's name.

    Raises:
        ArgumentError: tokens that a model doesn't know, a sentence past the end of its positions or without a token to
            predict, a last word that can't be told from what comes before it.
    """
    found = {}
    for subject in {arm.subject.source: arm.subject for arm in arms}.values():
        ids = [one for block in work for one, _ in _spelled(block, subject.tokenizer)]
        kinds = " and ".join(dict.fromkeys(block.kind for block in work))
        longest = max(map(len, ids))
        subject.check_length("longest sentence", longest, longest)
        found[subject.name] = subject.check_tokens(ids, "text", kinds)
    return found


def measure(
    arms: Sequence[Arm],
    subjects: Subjects,
    work: Sequence[Block],
    store: Store,
    on_start: Callable[[str], None] = lambda _: None,
    on_done: Callable[[str], None] = lambda _: None,
) -> list[Found]:
    """Every arm's answers; blocks that are in the store aren't measured again. Callbacks as in `records_of`."""
    units = [(block.identity, block) for block in work]
    found = []
    for arm, records in records_of(arms, units, subjects, store, _measured, on_start, on_done):
        answers = [(block.kind, _answers(block, record)) for block, record in zip(work, records, strict=True)]
        by_kind = {
            name: tuple(a for kind, held in answers if kind == name for a in held) for name in ("pairs", "words")
        }
        found.append(Found(arm, by_kind["pairs"], by_kind["words"]))
    return found


def _measured(model: nn.Module, arm: Arm, block: Block) -> dict[str, Any]:
    """A block's record."""
    began = time.monotonic()
    spelled = _spelled(block, arm.subject.tokenizer)
    judged = _judge(model, [ids for ids, _ in spelled])
    if block.kind == "pairs":
        sums = [float(losses.double().sum()) for losses, _ in judged]
        items = [
            {"set": pair.test_set, "good": pair.good, "bad": pair.bad, "good_nll": good, "bad_nll": bad}
            for (_, pair), good, bad in zip(block.items, sums[::2], sums[1::2], strict=True)
        ]
    else:
        items = [
            _last_word(arm.subject.tokenizer, passage, losses[-size:], likeliest[-size:], ids[-size:])
            for (_, passage), (ids, size), (losses, likeliest) in zip(block.items, spelled, judged, strict=True)
        ]
    seconds = round(time.monotonic() - began, 2)
    return {"kind": block.kind, "arm": arm.name, "items": items, "seconds": seconds}


def _last_word(
    tokenizer: Any, passage: Passage, losses: Tensor, likeliest: Tensor, ids: Sequence[int]
) -> dict[str, Any]:
    """What the model made of a passage's last word, from the word's own tokens."""
    said = likeliest.tolist()
    right = next((place for place, (a, b) in enumerate(zip(said, ids, strict=True)) if a != b), len(ids))
    return {
        "context": passage.context,
        "word": passage.word,
        # Greedy: what follows a wrong token would be another text.
        "answer": str(tokenizer.decode(said[: right + 1])).strip(),
        "is_exact": right == len(ids),
        "nll": float(losses.double().mean()),
    }


def _answers(block: Block, record: dict[str, Any]) -> Iterator[Answer]:
    for (number, _), item in zip(block.items, record["items"], strict=True):
        if block.kind == "pairs":
            name, is_right = item["set"], item["good_nll"] < item["bad_nll"]
            likelier = item["good"] if is_right else item["bad"]
            yield Answer(pair_id(name, number), name, 0.0, "pair", item["good"], item["good_nll"], is_right, likelier)
        else:
            said, nll = item["answer"], item["nll"]
            yield Answer(f"words/{number}", "words", 1.0, "word", item["word"], nll, item["is_exact"], said)


def pair_id(test_set: str, number: int) -> str:
    """What the answer about a pair is filed under, by its place within its test set, from 0 on."""
    return f"{test_set}/{number}"


def _spelled(block: Block, tokenizer: Any) -> list[tuple[list[int], int]]:
    """(token ids, how many at their end are judged) of each sequence: good and bad by turns, or passages."""
    if block.kind == "pairs":
        ids = [_ids(tokenizer, sentence) for _, pair in block.items for sentence in (pair.good, pair.bad)]
        return [(one, len(one) - 1) for one in ids]
    found = []
    for number, passage in block.items:
        context, whole = _ids(tokenizer, passage.context), _ids(tokenizer, f"{passage.context} {passage.word}")
        if whole[: len(context)] != context or len(whole) == len(context):
            remedy = "its last word can't be told from what comes before by this tokenizer; take the passage out"
            raise ArgumentError("words", f"passage {number + 1}: {passage.word}", remedy)
        found.append((whole, len(whole) - len(context)))
    return found


def _ids(tokenizer: Any, text: str) -> list[int]:
    """What stands before every text, if anything, and the text's tokens."""
    ids = [*_start(tokenizer), *tokenizer(text, add_special_tokens=False)["input_ids"]]
    if len(ids) < 2:
        raise ArgumentError("text", text, "has no token to predict; give a longer sentence")
    return ids


def _start(tokenizer: Any) -> list[int]:
    """The start token, else a line's end if that is one token that the tokenizer knows, else nothing."""
    start = getattr(tokenizer, "bos_token_id", None)
    if start is not None:
        return [start]
    ids = list(tokenizer("\n", add_special_tokens=False)["input_ids"])
    return ids if len(ids) == 1 and ids[0] != getattr(tokenizer, "unk_token_id", None) else []


@torch.no_grad()
def _judge(model: nn.Module, ids: Sequence[list[int]]) -> list[tuple[Tensor, Tensor]]:
    """For each sequence: nats of each token but the first, and the likeliest token in its place; in the order given.

    Sequences of about one length share a batch, padded on the right, where a causal model never looks.
    """
    device = next(model.parameters()).device
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for numbers in _batches([len(one) for one in ids], MOST_LOGITS // vocabulary):
        longest = max(len(ids[number]) for number in numbers)
        tokens = torch.tensor([ids[n] + [0] * (longest - len(ids[n])) for n in numbers], device=device)
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
        losses = bounded(nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")).cpu()
        likeliest = logits.argmax(dim=-1).cpu()
        for row, number in enumerate(numbers):
            size = len(ids[number]) - 1
            found[number] = losses[row, :size], likeliest[row, :size]
    return [found[number] for number in range(len(ids))]


def _batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Numbers of sequences, shortest first, in batches of at most so many tokens with padding, or of one sequence."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[number] > most:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
