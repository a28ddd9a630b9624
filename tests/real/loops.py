"""Loaded by the processes of test_loops.py: a tool, a parser that calls it, an agent loop, a manager, its workers."""

import json
from typing import Any
from uuid import uuid4

import ray
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput
from verl.experimental.agent_loop.tool_parser import FunctionCall, ToolParser
from verl.tools.base_tool import BaseTool
from verl.tools.schemas import ToolResponse
from verl.trainer.ppo.v1 import AgentLoopManagerTQ, AgentLoopWorkerTQ


class Lookup(BaseTool):
    """Answers with the word that the row of the data set names in its ``tools_kwargs``."""

    def __init__(self, config: dict, tool_schema: Any):
        super().__init__(config, tool_schema)
        self._words: dict[str, str] = {}

    async def create(self, instance_id: str | None = None, **kwargs: Any) -> tuple[str, ToolResponse]:
        instance_id = instance_id or uuid4().hex
        self._words[instance_id] = kwargs["create_kwargs"]["word"]
        return instance_id, ToolResponse()

    async def execute(self, instance_id: str, parameters: dict[str, Any], **_: Any) -> tuple[ToolResponse, float, dict]:
        return ToolResponse(text=f"found {self._words[instance_id]}"), 0.0, {}

    async def release(self, instance_id: str, **_: Any) -> None:
        del self._words[instance_id]


@ToolParser.register("always")
class AlwaysCalls(ToolParser):
    """The tiny model cannot call a tool: whatever it says is taken for a call."""

    async def extract_tool_calls(self, responses_ids: list[int], tools: Any = None) -> tuple[str, list[FunctionCall]]:
        return self.tokenizer.decode(responses_ids), [FunctionCall(name="lookup", arguments=json.dumps({}))]


class TwoOutputs(AgentLoopBase):
    """Answers, then is shown its answer and answers again: two outputs a session, the second one is scored."""

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> list[AgentLoopOutput]:
        messages = list(kwargs["raw_prompt"])
        outputs = []
        for _ in range(2):
            prompt_ids = await self.ct_build_initial_tokens(messages)
            answer = await self.server_manager.generate(
                request_id=uuid4().hex, prompt_ids=prompt_ids, sampling_params=sampling_params, priority=int(priority)
            )
            text = self.tokenizer.decode(answer.token_ids, skip_special_tokens=True)
            outputs.append(
                AgentLoopOutput(
                    prompt_ids=prompt_ids,
                    response_ids=answer.token_ids,
                    response_mask=[1] * len(answer.token_ids),
                    response_logprobs=answer.log_probs,
                    num_turns=2,
                    metrics={},
                    extra_fields={**answer.extra_fields, "turn_scores": [], "tool_rewards": []},
                )
            )
            messages = [
                *messages,
                {"role": "assistant", "content": text},
                {"role": "user", "content": "Once more."},
            ]
        return outputs


class OwnWorker(AgentLoopWorkerTQ.__ray_metadata__.modified_class):
    """Says which prompts it rolls out."""

    async def _run_prompt(self, prompt: dict, *args: Any, **kwargs: Any) -> None:
        print(f"OwnWorker: prompt {prompt['uid']}")
        await super()._run_prompt(prompt, *args, **kwargs)


class OwnManager(AgentLoopManagerTQ):
    """Says what it dispatches, to workers of its own."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(OwnWorker)

    def generate_sequences(self, prompts: Any) -> None:
        print(f"OwnManager: {len(prompts)} prompts")
        super().generate_sequences(prompts)
