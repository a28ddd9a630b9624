"""A small model in plain PyTorch: what it samples, and the log-likelihood of what it sampled."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from examples.tiny.evaluate import is_right
from examples.tiny.task import Task

Chat = list[dict]
Verifier = Callable[[str, str], bool]
"""Whether a response is right, by its text and the right answer."""

AT_ONCE = 512
"""Responses sampled at once."""
TOKENS_AT_ONCE = 6144
"""Tokens, padding included, of one forward pass for gradients."""


@dataclass(frozen=True)
class Sample:
    """A response to a prompt, as token ids and text, whether it is right, and whether the second verifier says so."""

    prompt: list[int]
    response: list[int]
    text: str
    right: bool
    second: bool | None = None


class Policy:
    """A model on the CPU, in float32, at temperature 1."""

    def __init__(self, folder: Path, *, verifier: Verifier = is_right, second: Verifier | None = None):
        self.verifier, self.second = verifier, second
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(self, messages: Chat) -> list[int]:
        """Tokens of a chat, up to where the response begins."""
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.tokenizer.encode(text, add_special_tokens=False)

    def sample(self, asked: Sequence[tuple[Chat, str]]) -> list[Sample]:
        """A response to each (chat, right answer); of equal chats the same object is encoded once."""
        encoded = {id(messages): messages for messages, _ in asked}
        ids = {key: self.ids(messages) for key, messages in encoded.items()}
        prompts = [ids[id(messages)] for messages, _ in asked]
        # Prompts of a length together: less padding.
        order = sorted(range(len(asked)), key=lambda i: len(prompts[i]))
        found: dict[int, Sample] = {}
        for at in range(0, len(order), AT_ONCE):
            places = order[at : at + AT_ONCE]
            responses = self._generate([prompts[i] for i in places])
            texts = self.tokenizer.batch_decode(responses, skip_special_tokens=True)
            for i, ids, text in zip(places, responses, texts, strict=True):
                answer = asked[i][1]
                second = self.second(text, answer) if self.second else None
                found[i] = Sample(prompts[i], ids, text, self.verifier(text, answer), second)
        return [found[i] for i in range(len(asked))]

    @torch.no_grad()
    def _generate(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """Response tokens, the end token included, `Task.response_length` at most."""
        # Equal prompts are read once.
        number: dict[tuple[int, ...], int] = {}
        which = torch.tensor([number.setdefault(tuple(prompt), len(number)) for prompt in prompts])
        batch = self.tokenizer.pad({"input_ids": [*map(list, number)]}, padding_side="left", return_tensors="pt")
        mask, cache = batch["attention_mask"], DynamicCache(config=self.model.config)
        at = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        logits = self._next(batch["input_ids"], mask, at, cache)[which]
        cache.batch_select_indices(which)
        mask, at = mask[which], at[which, -1:]
        responses: list[list[int]] = [[] for _ in prompts]
        places, alive = list(range(len(prompts))), [True] * len(prompts)
        while True:
            ids = torch.multinomial(logits.softmax(dim=-1), 1)
            for row, token in enumerate(ids[:, 0].tolist()):
                # A row that has ended goes on until it is taken out, and what it says is dropped.
                if alive[row]:
                    response = responses[places[row]]
                    response.append(token)
                    alive[row] = token != self.tokenizer.eos_token_id and len(response) < Task.response_length
            if not any(alive):
                return responses
            # Copying the cache costs as much as some steps.
            if sum(alive) < 0.75 * len(alive):
                kept = torch.tensor(alive).nonzero()[:, 0]
                cache.batch_select_indices(kept)
                ids, mask, at = ids[kept], mask[kept], at[kept]
                places = [places[row] for row in kept.tolist()]
                alive = [True] * len(places)
            mask, at = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1), at + 1
            logits = self._next(ids, mask, at, cache)

    def _next(self, ids: Tensor, mask: Tensor, at: Tensor, cache: DynamicCache) -> Tensor:
        """(rows, vocabulary) logits of the next token; `cache` is added to."""
        found = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=at,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return found.logits[:, -1]

    def log_probs(
        self, rows: Sequence[tuple[list[int], list[int]]], *, width: int | None = None
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Of (prompt, response) rows the log-probability of each response token, some rows at a time.

        width: of what is yielded, the longest response where it is None.
        Yields: positions in `rows`, and (their number, width) float32, 0 after a response's end.
        """
        order = sorted(range(len(rows)), key=lambda i: sum(map(len, rows[i])))
        width = max((len(response) for _, response in rows), default=0) if width is None else width
        while order:
            length = 0
            places: list[int] = []
            # From the longest down.
            while order and max(length, sum(map(len, rows[order[-1]]))) * (len(places) + 1) <= TOKENS_AT_ONCE:
                length = max(length, sum(map(len, rows[order[-1]])))
                places.append(order.pop())
            ids = torch.zeros(len(places), length, dtype=torch.int64)
            target = torch.zeros(len(places), width, dtype=torch.int64)
            source, mask = torch.zeros_like(target), torch.zeros(len(places), width)
            for row, place in enumerate(places):
                prompt, response = rows[place]
                ids[row, : len(prompt) + len(response)] = torch.tensor(prompt + response)
                target[row, : len(response)] = torch.tensor(response)
                source[row, : len(response)] = torch.arange(len(prompt) - 1, len(prompt) + len(response) - 1)
                mask[row, : len(response)] = 1
            # No mask of attention: padding is on the right, where a causal model does not see it.
            hidden = self.model.model(input_ids=ids).last_hidden_state
            hidden = hidden.gather(1, source[..., None].expand(-1, -1, hidden.shape[-1]))
            log_prob = log_softmax(self.model.lm_head(hidden), dim=-1).gather(-1, target[..., None])[..., 0]
            yield places, log_prob * mask
