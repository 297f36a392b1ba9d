"""Conversations as token ids, by the Jinja template that comes with a tokenizer; what is an answer in them is known token by token."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmx.types import BadInput

Message = Mapping[str, str]

PLAIN = (
    '{% for message in messages %}{% if message.role == "assistant" %}{{ message.content }}{{ eos_token }}{% else %}{{ message.content }}\n'
    '{% endif %}{% endfor %}'
)
"""For tokenizers without a template: a question, a line end, the answer, the end token."""
_MARK = '\ue000'  # for private use, so that no text has it: put into special tokens that a message spells out


class Chat:
    """How a tokenizer writes conversations.

    A special token is one only where the template put it: a message that spells it out stays text, so that nobody ends a turn by typing.

    Args:
      tokenizer: see `lmx.text`; its `chat_template` is taken where no template is given, and `PLAIN` where there is none.
      template: a Jinja template of `messages`, `add_generation_prompt`, `bos_token` and `eos_token`, as transformers has them.

    Raises:
      BadInput: a template that is broken, or one that needs an end token of a tokenizer without.
    """

    def __init__(self, tokenizer: Any, template: str | None = None):
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self.tokenizer = tokenizer
        self.text = template or tokenizer.chat_template or PLAIN
        if 'eos_token' in self.text and tokenizer.eos_id is None:
            raise BadInput('the chat template ends answers with eos_token, which the tokenizer has not; use one with an end token')
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=['jinja2.ext.loopcontrols'])
        environment.filters['tojson'] = lambda value, **how: json.dumps(value, ensure_ascii=False, **how)
        environment.globals['raise_exception'] = _refuse
        try:
            self.template = environment.from_string(self.text)
        except jinja2.TemplateError as error:
            raise BadInput(f'the chat template is broken: {error}') from None
        named = {role: tokenizer.specials.get(role) for role in ('bos', 'eos', 'unk', 'pad')}
        self.tokens = {f'{role}_token': token or '' for role, token in named.items()}

    def render(self, messages: Sequence[Message], *, answer_next: bool = False) -> str:
        """The conversation as text; with `answer_next` it ends where the assistant is to speak.

        Raises:
          BadInput: what the template refuses, such as roles in an order that it does not know.
        """
        import jinja2

        shown = [{**message, 'content': self._hidden(message['content'])} for message in messages]
        try:
            return self.template.render(messages=shown, add_generation_prompt=answer_next, **self.tokens)
        except jinja2.TemplateError as error:
            raise BadInput(f'the chat template refuses the conversation: {error}') from None

    def prompt(self, messages: Sequence[Message]) -> np.ndarray:
        """Ids of all up to where the assistant is to speak, int32 [length]."""
        return self._ids(self.render(messages, answer_next=True))[0]

    def encode(self, messages: Sequence[Message]) -> tuple[np.ndarray, np.ndarray]:
        """A whole conversation.

        Returns:
          (ids int32 [length], answer bool [length]): what the assistant says, its end of turn included, and nobody else.

        Raises:
          BadInput: no answer in it; a template that writes the beginning of a conversation otherwise once there is more of it.
        """
        whole = self.render(messages)
        ids, offsets = self._ids(whole)
        answer = np.zeros(len(ids), bool)
        for place, message in enumerate(messages):
            if message['role'] == 'assistant':
                before, after = self.render(messages[:place], answer_next=True), self.render(messages[: place + 1]).rstrip()
                if not (whole.startswith(after) and after.startswith(before)):
                    raise BadInput(f'the chat template writes message {place + 1} otherwise when more follow; give task.template')
                answer |= (offsets[:, 0] >= len(before)) & (offsets[:, 0] < len(after))
        if not answer.any():
            raise BadInput(f'a conversation of {len(messages)} messages has no answer of the role assistant')
        return ids, answer

    def _hidden(self, content: str) -> str:
        return self._special.sub(lambda found: found[0][0] + _MARK + found[0][1:], content) if self._special.pattern else content

    def _ids(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """(ids, places in the text [length, 2]); the template's special tokens are ids of their own."""
        if _MARK not in text:
            found = self._marked.encode(text, add_special_tokens=False)
            return np.array(found.ids, np.int32), np.array(found.offsets, np.int32).reshape(-1, 2)
        ids, places, start = [], [], 0
        for part in re.split(f'({self._special.pattern})', text):
            special = self._special.fullmatch(part)
            some, where = ([self.tokenizer.inner.token_to_id(part)], [(0, len(part))]) if special else self._plain(part)
            ids.extend(some)
            places.extend((start + a, start + b) for a, b in where)
            start += len(part)
        return np.array(ids, np.int32), np.array(places, np.int32).reshape(-1, 2)

    def _plain(self, part: str) -> tuple[Any, Any]:
        """Ids of a text that marks were put into, and their places in it, marks included."""
        ids, places = self.tokenizer.encode_with_offsets(part.replace(_MARK, ''))
        kept = np.flatnonzero([character != _MARK for character in part])
        return ids.tolist(), [(kept[a], kept[b - 1] + 1) if b > a else (kept[min(a, len(kept) - 1)],) * 2 for a, b in places.tolist()]

    @functools.cached_property
    def _special(self) -> re.Pattern[str]:
        added = self.tokenizer.inner.get_added_tokens_decoder().values()
        texts = sorted((token.content for token in added if token.special), key=len, reverse=True)
        return re.compile('|'.join(map(re.escape, texts)))

    @functools.cached_property
    def _marked(self) -> Any:
        """The tokenizer, for texts whose special tokens are meant."""
        from tokenizers import Tokenizer

        inner = Tokenizer.from_str(self.tokenizer.inner.to_str())
        inner.no_truncation()
        inner.no_padding()
        inner.encode_special_tokens = False
        return inner


def messages_of(record: Any) -> list[dict[str, str]]:
    """A record's conversation: {'messages': [{'role', 'content'}, ...]} (or that list as JSON text), or {'prompt'}, a
    text or such a list, with or without {'completion'}.

    Raises:
      BadInput: neither, or a message that is not one.
    """
    found = record.get('messages')
    if found is None:
        if 'prompt' not in record:
            raise BadInput(f'a record with {", ".join(record)} is no conversation; it needs messages, or prompt and completion')
        asked, answer = record['prompt'], record.get('completion')
        asked = messages_of({'messages': asked}) if isinstance(asked, list) else [{'role': 'user', 'content': _text(asked)}]
        return asked if answer is None else [*asked, {'role': 'assistant', 'content': _text(answer)}]
    if isinstance(found, (str, bytes)):
        try:
            found = json.loads(found)
        except ValueError as error:
            raise BadInput(f'messages are not JSON ({error}): {_text(found)[:60]!r}') from None
    if not isinstance(found, Sequence) or not all(isinstance(each, Mapping) and {'role', 'content'} <= set(each) for each in found):
        raise BadInput(f'messages are not a list of records with role and content: {str(found)[:60]}')
    return [{**each, 'role': _text(each['role']), 'content': _text(each['content'])} for each in found]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _refuse(why: str) -> None:
    import jinja2

    raise jinja2.TemplateError(why)
