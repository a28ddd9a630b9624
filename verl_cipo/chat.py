"""Ask a checkpoint a question, and let it correct its answer.

    python -m verl_cipo.chat --checkpoint DIR "Tom has 7 apples. He buys 5 more. How many apples does Tom have now?"
    python -m verl_cipo.chat --checkpoint DIR       reads questions from the terminal, a line each, up to an empty one

Prints the attempt, and the correction that the model is asked for with the correction prompt of a validation. The model
is loaded with transformers on the CPU, without vLLM. Exit status 1 when it could not be done.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from verl_cipo.core.config import CIPOConfig, PromptConfig
from verl_cipo.core.prompts import correction_prompt
from verl_cipo.evaluation.jsonl import EvaluationError, told
from verl_cipo.evaluation.options import real
from verl_cipo.evaluation.suite.engine import model_folder
from verl_cipo.evaluation.suite.pairs import add_pairs, pairs, second_turn

PAIRS = ("--prompt", "--chat-template")
MOST_TOKENS = 512
"""Of an answer, where nothing else is asked for."""
UNLIMITED = 2**31


class Chat:
    """A model with its correction prompt.

    Args:
        checkpoint: Hugging Face folder.
        prompt: of the correction.
        template: arguments of the chat template.
        max_tokens: of an answer; None is MOST_TOKENS, and at most half of what the model takes.
        temperature: 0 takes the likeliest token each time.

    Raises:
        OSError, ValueError: transformers cannot load the model.
        EvaluationError: max_tokens leaves no room for a prompt.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        prompt: PromptConfig,
        template: Mapping[str, Any],
        max_tokens: int | None,
        temperature: float,
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self._model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto").eval()
        self._template = template
        self._temperature = temperature
        positions = getattr(self._model.config.get_text_config(), "max_position_embeddings", None) or UNLIMITED
        self._max_tokens = min(MOST_TOKENS, positions // 2) if max_tokens is None else max_tokens
        self._room = positions - self._max_tokens
        self.prompt = correction_prompt(
            CIPOConfig(prompt=prompt),
            self._tokenizer,
            prompt_length=self._room,
            count_tokens=lambda messages: len(self._encode(messages)),
        )
        if (least := self.prompt.minimum_tokens()) > self._room:
            raise EvaluationError(
                f"--max-tokens {self._max_tokens}: a correction prompt takes {least} tokens or more, and of the "
                f"{positions} that the model takes {max(self._room, 0)} are left"
            )

    def answer(self, messages: list[dict]) -> str:
        """What the model says to a chat. Raises: EvaluationError where the chat is too long for it."""
        import torch

        ids = self._encode(messages)
        if len(ids) > self._room:
            raise EvaluationError(
                f"the question takes {len(ids)} tokens, and --max-tokens {self._max_tokens} leaves it {self._room}"
            )
        how: dict[str, Any] = {"do_sample": False}
        if self._temperature > 0:
            # Not what generation_config.json says: rollouts are drawn from all tokens.
            how = {"do_sample": True, "temperature": self._temperature, "top_k": 0, "top_p": 1.0}
        asked = torch.tensor([ids])
        with torch.inference_mode():
            said = self._model.generate(
                input_ids=asked, attention_mask=torch.ones_like(asked), max_new_tokens=self._max_tokens, **how
            )
        return self.prompt.decode(said[0, len(ids) :].tolist())

    def _encode(self, messages: list[dict]) -> list[int]:
        return self._tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=False, **self._template
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask, print, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m verl_cipo.chat",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("question", nargs="?", help="without it, questions are read from the terminal")
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="Hugging Face folder")
    parser.add_argument("--instruction", metavar="TEXT", help="goes behind every question, as it does in your data")
    parser.add_argument("--max-tokens", type=int, help="of an answer (default 512, or half of what the model takes)")
    parser.add_argument("--temperature", type=real, default=1.0, help="0 takes the likeliest tokens (default 1)")
    parser.add_argument("--seed", type=int, help="of the draws (default: others each time)")
    parser.add_argument("--show-prompt", action="store_true", help="print what the model is shown for the correction")
    add_pairs(parser, PAIRS)
    args = parser.parse_args(arguments)
    try:
        _run(args)
    except (ValueError, OSError) as error:
        print(f"error: {told(error)}", file=sys.stderr)
        return 1
    return 0


def _run(args: argparse.Namespace) -> None:
    if args.max_tokens is not None and args.max_tokens < 1:
        raise EvaluationError(f"--max-tokens {args.max_tokens}: expected 1 or more")
    if args.temperature < 0:
        raise EvaluationError(f"--temperature {args.temperature}: expected 0 or more")
    given = pairs(args, PAIRS)
    prompt = second_turn(given["--prompt"]).prompt.in_validation
    checkpoint = model_folder(args.checkpoint)
    chat = Chat(
        checkpoint,
        prompt=prompt,
        template=given["--chat-template"],
        max_tokens=args.max_tokens,
        temperature=args.temperature,
    )
    if args.seed is not None:
        from transformers import set_seed

        set_seed(args.seed)
    for question in [args.question] if args.question else _questions():
        print(_exchange(chat, " ".join(filter(None, (question, args.instruction))), show_prompt=args.show_prompt))


def _questions() -> Iterator[str]:
    """Lines of the terminal up to an empty one."""
    while True:
        try:
            line = input("question: ").strip()
        except EOFError:
            return
        if not line:
            return
        yield line


def _exchange(chat: Chat, question: str, *, show_prompt: bool) -> str:
    """Attempt and correction, as they are printed."""
    messages = [{"role": "user", "content": question}]
    attempt = chat.answer(messages)
    parts = [("attempt", attempt)]
    request, reason = chat.prompt.request(messages, attempt)
    if request is None:
        parts.append(("no correction", f"{reason}: no correction prompt can be made of this attempt"))
    else:
        if show_prompt:
            shown = [f"[{message['role']}]\n{message['content']}" for message in request.messages]
            parts.append(("what the model is shown", "\n".join(shown)))
        correction = chat.answer(request.messages)
        same = ", the same text" if chat.prompt.repeats(request.shown, correction) else ""
        parts.append((f"correction{same}", correction))
    return "".join(f"--- {name}\n{text.strip()}\n" for name, text in parts)


if __name__ == "__main__":
    sys.exit(main())
