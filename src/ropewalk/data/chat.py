"""What stands around a haystack: a chat template's pieces, or plain text with an answer line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING

from ropewalk.data.text import encode, spelled
from ropewalk.errors import ArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_QUESTION = "\n\nQuestion: {question}\nAnswer: "
# A value follows these without a space.
_OPENERS = ('"', "(", "[", "{")
_SENTINEL = "HAYSTACKGOESHERE"
# Some chat templates print today's date; prompts must be the same every day. Llama's take a `date_string`;
# others call strftime_now, which no argument can replace, only a macro of that name before the template.
_DAY = {
    "%Y": "2025",
    "%y": "25",
    "%m": "01",
    "%B": "January",
    "%b": "Jan",
    "%d": "01",
    "%A": "Wednesday",
    "%a": "Wed",
}
_TIME = {"%H": "00", "%M": "00", "%S": "00"}


@dataclass(frozen=True)
class Frame:
    """What goes before and after a haystack.

    `head`: the token ids before it. `question` + `tail` + `answer_prefix`: the text after it, with {key}; or the
    question has {question}, which `for_question` fills in.
    """

    head: tuple[int, ...]
    question: str
    tail: str
    answer_prefix: str

    def for_question(self, question: str, answer_prefix: str) -> Frame:
        """The frame with {question} filled in and the reply begun with this prefix."""
        said = self.question.replace("{question}", question)
        return replace(self, question=said, answer_prefix=answer_prefix)

    def ask(
        self, tokenizer: PreTrainedTokenizerBase, key: str, value: str, end: str = ""
    ) -> tuple[list[int], list[int]]:
        """(ids after the haystack up to the answer, ids of the answer) for one key and its value.

        The two are cut from one tokenization, so the answer has the tokens that the model would write. A
        token of mere space before the value (some tokenizers split it off) belongs to the question. `end` follows the
        value and is part of the answer: it tells 18 from the start of 180.
        """
        asked, prefix = self.question.replace("{key}", key), self.answer_prefix.replace("{key}", key)
        whole = asked + self.tail + prefix
        gap = "" if whole[-1:].isspace() or whole.endswith(_OPENERS) else " "
        opening: list[int] = []
        has_names = any(encode(tokenizer, said) != encode(tokenizer, said, special=True) for said in (key, value))
        if has_names:  # of special tokens: in a key they are mere text, unlike those in the tail
            opening = encode(tokenizer, asked) + encode(tokenizer, self.tail, special=True)
            whole = prefix
        alone = encode(tokenizer, whole, special=not has_names)
        joined = encode(tokenizer, whole + gap + value + end, special=not has_names)
        cut = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(alone, joined, strict=False))))
        while cut < len(joined) - 1 and not spelled(tokenizer, joined[cut]).strip():
            cut += 1
        if not joined[cut:]:
            raise ArgumentError("tokenizer", type(tokenizer).__name__, f"gives no tokens for the answer {value!r}")
        return opening + joined[:cut], joined[cut:]


def frame_for(
    tokenizer: PreTrainedTokenizerBase,
    use_chat_template: bool,
    instruction: str,
    question: str,
    answer_prefix: str,
    plain_question: str = PLAIN_QUESTION,
    gap: str = "\n\n",
) -> Frame:
    """A chat model's frame; where there is no template, or none is wanted, plain text's.

    `plain_question` sets {question} in plain text; in a chat, `gap` stands between what is read and the question.
    """
    if use_chat_template and tokenizer.chat_template:
        return chat_frame(tokenizer, instruction, gap + question, answer_prefix)
    return plain_frame(tokenizer, instruction, plain_question.replace("{question}", question), answer_prefix)


def plain_frame(tokenizer: PreTrainedTokenizerBase, instruction: str, question: str, answer_prefix: str) -> Frame:
    """For models without a chat template: the start token, if the tokenizer adds one, then plain text."""
    body = encode(tokenizer, "a")
    with_start = [int(i) for i in tokenizer("a")["input_ids"]]
    starts = [i for i in range(len(with_start)) if with_start[i : i + len(body)] == body]
    head = with_start[: starts[0]] if body and starts else []
    return Frame((*head, *encode(tokenizer, instruction + "\n\n")), question, "", answer_prefix)


def chat_frame(tokenizer: PreTrainedTokenizerBase, instruction: str, question: str, answer_prefix: str) -> Frame:
    """For chat models: one user message of instruction, haystack and question; the answer opens the reply."""
    name = type(tokenizer).__name__
    try:
        message = tokenizer.apply_chat_template(
            [{"role": "user", "content": _SENTINEL}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,  # a reasoning model must answer at once, as the others do
            chat_template=_without_today(str(tokenizer.get_chat_template())),
            date_string="01 Jan 2025",
        )
    except Exception as error:  # a template is a program: it can raise anything
        reason = " ".join(str(error).split())[:200]
        raise ArgumentError("chat_template", name, f"fails ({reason}); use use_chat_template=False") from error
    head, *rest = str(message).split(_SENTINEL)
    if len(rest) != 1:
        raise ArgumentError("chat_template", name, "doesn't print a user message once; use use_chat_template=False")
    opening = (*encode(tokenizer, head, special=True), *encode(tokenizer, instruction + "\n\n"))
    return Frame(opening, question, rest[0], answer_prefix)


def _without_today(template: str) -> str:
    """The template, with a strftime_now that always tells the same day."""
    if "strftime_now" not in template:
        return template
    replaced = "".join(f"|replace('{code}', '{value}')" for code, value in (_DAY | _TIME).items())
    return f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}{template}"
