"""A model for tests: answers come from a function, tokens are characters."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from verl_cipo.core.config import PromptConfig
from verl_cipo.evaluation.suite.engine import Completion
from verl_cipo.evaluation.suite.generate import Generation
from verl_cipo.evaluation.suite.problems import Benchmark, Problem, Sampling


class CharacterTokenizer:
    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return list(map(ord, text))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "".join(map(chr, ids))


class ScriptedEngine:
    """`answer(prompt, seed)` is what it says; `asked` is what it was asked. It is cut off at max_tokens characters."""

    tokenizer = CharacterTokenizer()

    def __init__(self, answer: Callable[[str, int], str], *, max_model_len: int = 4000) -> None:
        self.answer, self.max_model_len = answer, max_model_len
        self.asked: list[tuple[str, int]] = []

    def instead_of_vllm(self, monkeypatch, module) -> "ScriptedEngine":
        """Itself, which `module` gets where it makes an engine; `made_with` is what it was then asked for."""

        def make(checkpoint, **options):
            self.made_with = {"checkpoint": checkpoint, **options}
            return self

        monkeypatch.setattr(module, "VLLMEngine", make)
        return self

    def encode(self, messages: list[dict]) -> list[int]:
        return self.tokenizer.encode("".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>")

    def sample(self, prompts, *, seeds, sampling) -> list[Completion]:
        found = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            text = self.tokenizer.decode(prompt)
            self.asked.append((text, seed))
            whole = self.answer(text, seed)
            cut = whole[: sampling.max_tokens]
            found.append(Completion(text=cut, tokens=len(cut), truncated=len(cut) < len(whole)))
        return found


def benchmark(**changes) -> Benchmark:
    sampling = Sampling(n=changes.pop("n", 2), temperature=1.0, top_p=1.0, max_tokens=changes.pop("max_tokens", 100))
    plain = Benchmark(
        name="made_up", file="f", converter="c", verifier="math", sampling=sampling, corrections=1, group=None
    )
    return replace(plain, **changes)


def problems(n: int = 5) -> list[Problem]:
    """Problem i asks for i."""
    return [
        Problem(
            key=f"made-up-{i}",
            messages=[{"role": "user", "content": f"Say {i}."}],
            ground_truth=str(i),
            data_source="made/up",
            extra_info={},
        )
        for i in range(n)
    ]


def generation(output: Path, **changes) -> Generation:
    plain = Generation(
        output=output, step=7, seed=1, prompt=PromptConfig(standalone=False), batch=4, described={"checkpoint": "m"}
    )
    return replace(plain, **changes)
