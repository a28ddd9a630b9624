"""verl's agent-loop worker and manager: what CIPO's override, when each is called, and what a session leaves behind."""

import ast
import asyncio
import inspect
import textwrap
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import NonTensorData, NonTensorStack, TensorDict

from tests.contracts.support.seams import check_accepts, check_parameters, load, parameters, seam

WORKER, MANAGER = "verl.trainer.ppo.v1:AgentLoopWorkerTQ", "verl.trainer.ppo.v1:AgentLoopManagerTQ"
OUTPUT = "verl.experimental.agent_loop:AgentLoopOutput"
ROLLOUTS, MANAGER_FILE = "verl_cipo/integration/rollout/worker.py", "verl_cipo/integration/rollout/manager.py"
OVERRIDDEN = {
    "_run_prompt": ["prompt", "sampling_params", "trajectory", "trace"],
    "_run_agent_loop": ["sampling_params", "trajectory", "agent_name", "trace", "kwargs"],
    "_compute_score": ["outputs", "kwargs"],
    "_agent_loop_postprocess": ["output", "validate", "kwargs"],
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=seam(f"AgentLoopWorkerTQ.{name}", ROLLOUTS)) for name in OVERRIDDEN]
)
def test_an_overridden_method_keeps_its_parameters(name):
    check_parameters(f"{WORKER}.{name}", OVERRIDDEN[name])


@seam("AgentLoopWorkerTQ, a Ray actor class", ROLLOUTS)
def test_the_worker_is_a_ray_actor_class_with_a_plain_class_inside():
    actor = getattr(load("verl.trainer.ppo.v1"), "AgentLoopWorkerTQ", None)
    assert hasattr(actor, "__ray_metadata__"), "AgentLoopWorkerTQ is no Ray actor class: inherit from it directly"
    assert load(WORKER).__name__ == "AgentLoopWorkerTQ"


@seam("AgentLoopManagerTQ.__init__, create", MANAGER_FILE)
def test_the_manager_makes_its_workers_of_the_class_it_was_given():
    manager = load(MANAGER)(OmegaConf.create({"actor_rollout_ref": {"rollout": {}, "model": {}}}), llm_client=None)
    assert manager.agent_loop_workers_class is load("verl.trainer.ppo.v1").AgentLoopWorkerTQ
    assert manager.config is not None
    names = load(f"{MANAGER}._init_agent_loop_workers").__code__.co_names
    assert "agent_loop_workers_class" in names, "the manager takes its workers' class from elsewhere"
    assert parameters(load(f"{MANAGER}.generate_sequences")) == ["prompts"]
    check_accepts(f"{MANAGER}.__init__", "args", "kwargs")


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 10))


def worker(n: int = 2, **attributes):
    """verl's worker without its constructor."""
    made = object.__new__(load(WORKER))
    made.config = OmegaConf.create({"actor_rollout_ref": {"rollout": {"n": n, "val_kwargs": {"n": 1}}}})
    made.__dict__.update(attributes)
    return made


@seam("AgentLoopManagerTQ.generate_sequences, AgentLoopWorkerTQ.generate_sequences", MANAGER_FILE, ROLLOUTS)
def test_each_prompt_reaches_run_prompt_with_all_fields_of_its_batch(monkeypatch):
    """The ticket of CIPO's manager is such a field: an object that all prompts share."""
    seen = []

    async def run_prompt(prompt, sampling_params, trajectory, trace=False):
        seen.append((prompt, trajectory))

    made = worker(_run_prompt=run_prompt, background_tasks=set())
    made.config = OmegaConf.create(
        {
            "actor_rollout_ref": {
                "rollout": {
                    **{"temperature": 1.0, "top_p": 1.0, "top_k": -1, "calculate_log_probs": False},
                    "agent": {"default_agent_loop": "single_turn_agent"},
                }
            }
        }
    )

    async def generate(chunk):
        await made.generate_sequences(chunk)
        await asyncio.gather(*made.background_tasks)

    handle = SimpleNamespace(generate_sequences=SimpleNamespace(remote=lambda chunk: run(generate(chunk))))
    manager = SimpleNamespace(agent_loop_workers=[handle, handle])
    monkeypatch.setattr(load("verl.trainer.ppo.v1.agent_loop_tq").ray, "get", lambda results: results)
    ticket = {"coordinator": object(), "batch": 4}
    prompts = TensorDict(
        {
            "uid": NonTensorStack("a", "b"),
            "index": NonTensorStack(3, 9),
            "raw_prompt": NonTensorStack([{"role": "user", "content": "A"}], [{"role": "user", "content": "B"}]),
            "dummy": torch.zeros(2, 1),
        },
        batch_size=2,
    )
    prompts["global_steps"] = NonTensorData(7)
    load("verl.utils.tensordict_utils:assign_non_tensor_data")(prompts, "__cipo__", ticket)
    load(f"{MANAGER}.generate_sequences")(manager, prompts)
    assert [prompt["uid"] for prompt, _ in seen] == ["a", "b"]
    assert [prompt["index"] for prompt, _ in seen] == [3, 9]
    assert all(prompt["__cipo__"]["batch"] == 4 for prompt, _ in seen), "a field that all prompts share is lost"
    assert seen[1][0]["raw_prompt"][0]["content"] == "B" and seen[0][0]["global_steps"] == 7
    assert seen[0][1] == {"step": 7, "sample_index": 3, "rollout_n": 0, "validate": False}, (
        f"the trajectory is {seen[0][1]}: seeds and CIPO's worker read step and validate from it"
    )


@seam("AgentLoopWorkerTQ._run_prompt", ROLLOUTS, "verl_cipo/integration/rollout/further.py")
def test_a_prompts_status_is_written_after_all_its_sessions_have_ended(store):
    """Corrections run inside the session that ends last: only so are they stored before the trainer may sample."""
    sessions = []

    async def session(sampling_params, trajectory, *, agent_name, trace, **kwargs):
        sessions.append((sampling_params, kwargs))
        await asyncio.sleep(0.01 * kwargs["session_id"])
        store.log.append(("session", kwargs["session_id"]))

    prompt = {"uid": "a", "index": 3, "agent_name": "loop", "raw_prompt": []}
    prompt |= {"__rollout_n__": 3, "__do_sample__": True}
    made = worker(_run_agent_loop=session)
    run(made._run_prompt(prompt, {"temperature": 0.5}, {"validate": False, "step": 1}))
    running, *middle, last = store.log
    assert running == ("status", ("a", "running")) and last == ("status", ("a", "finished"))
    assert middle == [("session", 0), ("session", 1), ("session", 2)], "__rollout_n__ or the wait for sessions changed"
    assert sessions[0][0] == {"temperature": 0.5}
    expected = {"uid": "a", "index": 3, "raw_prompt": [], "session_id": 1}
    assert sessions[1][1] == expected, f"a session gets {sessions[1][1]} of its prompt"


@seam("AgentLoopWorkerTQ._run_prompt", ROLLOUTS)
def test_rollout_n_is_the_number_of_sessions_and_one_failure_fails_the_prompt(store):
    async def session(sampling_params, trajectory, *, agent_name, trace, **kwargs):
        if kwargs["session_id"] == 1:
            raise RuntimeError("the engine went away")
        store.log.append(("session", kwargs["session_id"]))

    run(worker(n=3, _run_agent_loop=session)._run_prompt({"uid": "a", "agent_name": ""}, {}, {"validate": False}))
    assert store.log[-1] == ("status", ("a", "failure"))
    assert [entry for entry in store.log if entry[0] == "session"] == [("session", 0), ("session", 2)]


def output(**fields):
    made = load(OUTPUT)(prompt_ids=[1, 2], response_ids=[3, 4, 5], response_mask=[1, 1, 1], metrics={}, extra_fields={})
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def stored(store, uid: str = "a_c2", outputs: int = 1) -> dict:
    """What the worker stores of a session with ``outputs`` outputs."""

    async def score(outputs, kwargs):
        store.log.append(("score", kwargs["uid"]))
        outputs[-1].reward_score = 0.5
        outputs[-1].extra_fields["reward_extra_info"] = {"acc": 1.0}
        for each in outputs:
            each.extra_fields["cipo"] = {"correct": True}

    async def nothing(*_, **__):
        return None

    made = worker(
        _compute_score=score,
        _compute_teacher_logprobs=nothing,
        _compute_multi_modal_inputs=lambda *_: {},
        _compute_position_ids=lambda ids, mask, _: torch.arange(ids.shape[1]).unsqueeze(0),
    )
    kwargs = {"uid": uid, "session_id": 1, "global_steps": 7, "index": 9, "raw_prompt": [{"role": "user"}]}
    final = [output() for _ in range(outputs)]
    run(made._agent_loop_postprocess(final[0] if outputs == 1 else final, False, **kwargs))
    return store.rows


@seam("AgentLoopWorkerTQ._agent_loop_postprocess, the key of a row", ROLLOUTS, "verl_cipo/integration/train/rows.py")
def test_a_rows_key_is_uid_session_and_output(store):
    assert list(stored(store, outputs=2)) == ["a_c2_1_0", "a_c2_1_1"]
    names = [name for name, _ in store.log]
    assert names.index("score") < names.index("put"), "rows are stored before they are scored: marks come too late"


@seam("AgentLoopWorkerTQ._agent_loop_postprocess, fields of a row", "verl_cipo/integration/train/rows.py")
def test_a_row_holds_the_fields_that_cipo_reads(store):
    row = stored(store)["a_c2_1_0"]
    assert row["uid"] == "a_c2" and row["index"] == 9, "a session's own arguments are no fields of its row"
    extra = row["extra_fields"]
    assert extra["cipo"] == {"correct": True}, "extra_fields of an output no longer reach its row"
    assert row["rm_scores"].tolist() == [0.0, 0.0, 0.5], "the reward is not on the last token"
    for name, expected in {
        "prompts": [1, 2],
        "responses": [3, 4, 5],
        "input_ids": [1, 2, 3, 4, 5],
        "position_ids": [0, 1, 2, 3, 4],
        "response_mask": [1, 1, 1],
        "loss_mask": [1, 1, 1],
    }.items():
        assert row[name].tolist() == expected, f"field {name} is {row[name]}"
    assert "multi_modal_inputs" in row and "raw_prompt" in row


@seam("AgentLoopWorkerTQ._agent_loop_postprocess, tags of a row", ROLLOUTS, "verl_cipo/integration/train/aux.py")
def test_a_rows_tags_are_its_lengths_and_its_staleness(store):
    stored(store)
    assert store.tags["a_c2_1_0"] == {
        **{"status": "success", "prompt_len": 2, "response_len": 3, "seq_len": 5},
        **{"global_steps": 7, "min_global_steps": None, "max_global_steps": None},
    }


@seam("AgentLoopOutput", ROLLOUTS, "verl_cipo/integration/rollout/verify.py")
def test_an_outputs_reward_and_extra_fields_can_be_set_after_it_was_made():
    made = output(reward_score=None)
    assert made.reward_score is None and made.extra_fields == {}
    made.reward_score = 1.0
    made.extra_fields["cipo"] = {"correct": True}
    found = made.as_dict()
    assert found["extra_fields"] == {"cipo": {"correct": True}} and found["rm_scores"].tolist() == [0, 0, 1]


@seam("the worker's attributes", ROLLOUTS)
def test_the_worker_offers_what_correction_prompts_are_made_of():
    """tokenizer, processor, tools, hf_model_type, dataset_cls, rollout_config, config: set by verl's constructor."""
    names = load("verl.experimental.agent_loop.agent_loop:AgentLoopWorker.__init__").__code__.co_names
    missing = {"config", "rollout_config", "tokenizer", "processor", "tools", "hf_model_type", "dataset_cls"} - set(
        names
    )
    assert not missing, f"verl's worker no longer has {sorted(missing)}"


@seam("create_continuous_token_builder", ROLLOUTS)
def test_the_builder_counts_the_tokens_of_a_chat_as_the_agent_loops_render_it():
    path = "verl.utils.tokenizer.continuous_token_wiring:create_continuous_token_builder"
    check_accepts(path, "tokenizer", "hf_model_type", "chat_template_kwargs", "processor")

    class Words:
        chat_template = "words"

        def apply_chat_template(self, messages, **options):
            words = [word for message in messages for word in message["content"].split()]
            return list(range(len(words) + len(options.get("tools") or ())))

    builder = load(path)(Words(), hf_model_type="llama", chat_template_kwargs={}, processor=None)
    messages = [{"role": "user", "content": "one two"}]
    assert len(builder.build_initial_tokens(messages, tools=None)) == 2
    tool = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert len(builder.build_initial_tokens(messages, tools=tool)) == 3


RENDERING = "verl_cipo/integration/rendering.py"
LOOPS = "verl.experimental.agent_loop.agent_loop"


@seam("AgentLoopBase.process_multi_modal_info, get_dataset_class", RENDERING)
def test_an_agent_loop_loads_media_by_its_data_set_its_processor_and_its_options():
    """RLHFDataset where no class is named."""
    asked = []

    class DataSet:
        @classmethod
        async def process_multi_modal_info(cls, messages, image_patch_size, config):
            asked.append((messages, image_patch_size, config))
            return ["picture"], None, None

    processor = SimpleNamespace(image_processor=SimpleNamespace(patch_size=7))
    loop = SimpleNamespace(processor=processor, dataset_cls=DataSet, data_config="data")
    found = run(load(f"{LOOPS}:AgentLoopBase.process_multi_modal_info")(loop, ["chat"]))
    assert found == {"images": ["picture"]} and asked == [(["chat"], 7, "data")]
    default = load("verl.utils.dataset.rl_dataset:get_dataset_class")(OmegaConf.create({}))
    assert default.__name__ == "RLHFDataset" and hasattr(default, "process_multi_modal_info")


@seam("load_all_tools, resolve_config_path, tool_selection", "verl_cipo/integration/tools.py")
def test_tools_are_loaded_from_two_files_and_selected_by_a_row(tmp_path):
    """The worker loads them so, and its tool agent offers all, or what the row's extra_info.tool_selection names."""
    check_accepts("verl.tools.tool_registry:load_all_tools", "tool_config_path", "function_tool_path")
    file = tmp_path / "tools.yaml"
    schema = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}
    schema["function"]["parameters"] = {"type": "object", "properties": {}, "required": []}
    made = {"class_name": "verl.tools.base_tool.BaseTool", "config": {"type": "native"}, "tool_schema": schema}
    file.write_text(OmegaConf.to_yaml(OmegaConf.create({"tools": [made]})))
    found = load("verl.utils.import_utils:resolve_config_path")(str(file))
    (tool,) = load("verl.tools.tool_registry:load_all_tools")(tool_config_path=found, function_tool_path=None)
    assert tool.tool_schema.model_dump(exclude_unset=True, exclude_none=True) == schema
    worker = inspect.getsource(load(f"{LOOPS}:AgentLoopWorker.__init__"))
    assert "load_all_tools(" in worker and "resolve_config_path(tool_config_path)" in worker
    loop = load("verl.experimental.agent_loop.tool_agent_loop:ToolAgentLoop")
    assert 'extra_info.get("tool_selection")' in inspect.getsource(loop.run)
    for part in (loop.__init__, loop.run):
        assert "model_dump(exclude_unset=True, exclude_none=True)" in inspect.getsource(part)


@seam("ContinuousTokenBuilder.build_initial_tokens", RENDERING)
def test_a_builder_takes_media_beside_the_chat():
    module = "verl.utils.tokenizer.continuous_token"
    for name in ("ContinuousTokenBuilder", "QwenVLContinuousTokenBuilder", "VLContinuousTokenBuilder"):
        check_accepts(f"{module}:{name}.build_initial_tokens", "messages", "tools", "images", "videos", "audios")


@seam("AgentLoopWorker._compute_position_ids", RENDERING)
def test_positions_of_a_row_with_media_are_the_processors_below_those_of_its_tokens():
    def get_rope_index(input_ids, mm_token_type_ids, attention_mask, **grids):
        assert grids == {"image_grid_thw": "grid", "video_grid_thw": None} and mm_token_type_ids.tolist() == [[0, 1, 0]]
        return torch.full((3, 1, 3), 7), None

    processor = SimpleNamespace(get_rope_index=get_rope_index, image_token_id=9, video_token_id=8)
    ids = torch.tensor([[5, 9, 5]])
    inputs = {"image_grid_thw": "grid", "mm_token_type_ids": ids}
    worker = SimpleNamespace(processor=processor)
    found = load(f"{LOOPS}:AgentLoopWorker._compute_position_ids")(worker, ids, torch.ones_like(ids), inputs)
    assert found.tolist() == [[[0, 1, 2], [7, 7, 7], [7, 7, 7], [7, 7, 7]]]
    assert "mm_token_type_ids" not in inputs, "they are stored with a row now: aux rows would be skipped for them"


@seam("extract_multi_modal_inputs", "verl_cipo/integration/train/aux.py")
def test_what_the_model_sees_of_several_rows_is_one_after_the_other():
    join = load("verl.utils.model:extract_multi_modal_inputs")
    found = join([{"pixel_values": torch.tensor([[1.0]])}, {}, {"pixel_values": torch.tensor([[2.0], [3.0]])}])
    assert found["pixel_values"].tolist() == [[1], [2], [3]] and join([]) == {}


@seam("vLLM server of verl, rollout.full_determinism", "verl_cipo/integration/rollout/seeds.py")
def test_a_seed_in_the_sampling_parameters_stays():
    """verl gives all requests of a replica one seed; a setdefault leaves CIPO's."""
    generate = load("verl.workers.rollout.vllm_rollout.vllm_async_server:vLLMHttpServer.generate")
    tree = ast.parse(textwrap.dedent(inspect.getsource(generate)))
    set_default = [
        ast.unparse(node.args[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "sampling_params.setdefault"
    ]
    assert "'seed'" in set_default, "verl no longer seeds requests by sampling_params.setdefault('seed', ...)"


@seam("get_trajectory_info", ROLLOUTS)
def test_a_trajectory_has_step_and_validate():
    check_parameters("verl.experimental.agent_loop:get_trajectory_info", ["step", "index", "validate"])
    found = run(load("verl.experimental.agent_loop:get_trajectory_info")(5, [1, 2], True))
    assert all(entry["step"] == 5 and entry["validate"] is True for entry in found)


@seam("SingleTurnAgentLoop.run, TokenOutput", "benchmarks")
def test_an_agent_loop_asks_the_engine_for_token_ids():
    loop = load("verl.experimental.agent_loop.single_turn_agent_loop:SingleTurnAgentLoop")
    assert parameters(loop.run)[0] == "sampling_params" and parameters(loop.run)[-1] == "kwargs"
    made = load("verl.workers.rollout.replica:TokenOutput")(
        token_ids=[1], log_probs=[0.0], stop_reason="completed", extra_fields={"min_global_steps": 1}
    )
    assert made.token_ids == [1] and made.extra_fields == {"min_global_steps": 1}


CLIENT = "verl.workers.rollout.llm_server:LLMServerClient"


@seam("LLMServerClient._acquire_server, generate", "verl_cipo/integration/rollout/cancelling.py")
def test_a_request_is_sent_to_the_server_that_acquire_server_hands_out():
    assert parameters(load(f"{CLIENT}._acquire_server"))[0] == "request_id"
    assert inspect.iscoroutinefunction(load(f"{CLIENT}._acquire_server"))
    source = textwrap.dedent(inspect.getsource(load(f"{CLIENT}.generate")))
    assert "await self._acquire_server(" in source and "await server.generate.remote(" in source, (
        "a session that is given up would not end its request"
    )


@seam("workers.rollout.utils.get_max_position_embeddings", "verl_cipo/integration/lengths.py")
def test_a_model_says_how_long_its_sequences_may_be():
    found = load("verl.workers.rollout.utils:get_max_position_embeddings")
    assert found(SimpleNamespace(max_position_embeddings=512)) == 512
