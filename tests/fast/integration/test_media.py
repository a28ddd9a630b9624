"""Questions with pictures: verl's worker, agent loop, data set and processor; the engine and TransferQueue are played.

tests/real/test_pictures.py has the whole path. pictures.py says what these need.
"""

import asyncio
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transfer_queue as tq
from hydra import compose, initialize_config_module
from tensordict import NonTensorStack, TensorDict
from verl import DataProto
from verl.experimental.agent_loop import AgentLoopOutput, AgentLoopWorker
from verl.experimental.agent_loop.agent_loop import DictConfigWrap
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.utils.torch_functional import entropy_from_logits
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.rollout.replica import TokenOutput

from tests import pictures
from tests.contracts.support.store import FUNCTIONS, Store
from tests.fast.integration.rollout.test_worker import Remote
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.prompts import TAIL_MARK
from verl_cipo.integration.data_set import check_questions
from verl_cipo.integration.lengths import check_prompt_length
from verl_cipo.integration.rendering import Rendering, media_tokens
from verl_cipo.integration.rollout import worker as rollouts
from verl_cipo.integration.rollout.coordinator import AnchorCoordinator
from verl_cipo.integration.tools import NO_TOOLS, RunTools
from verl_cipo.integration.train.aux import BOUND, add_aux_rows
from verl_cipo.integration.train.rows import fetch_table
from verl_cipo.integration.v0.material import Material, Response
from verl_cipo.integration.v0.rows import SESSION, marks, objects
from verl_cipo.integration.v0.second_dispatch import ANCHOR
from verl_cipo.integration.v0.worker import CIPOAgentLoopWorkerV0

pytestmark = pictures.needs_vision
BASE = rollouts.AgentLoopWorkerTQ.__ray_metadata__.modified_class
N, PROMPTS = 4, 4


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return pictures.make_model_folder(tmp_path_factory.mktemp("model"), steps=0)


@pytest.fixture(scope="module")
def config_of(model_folder):
    def made(*overrides, prompt_length=120):
        with initialize_config_module("verl.trainer.config", version_base=None):
            return compose(
                "ppo_trainer",
                overrides=[
                    "algorithm.adv_estimator=cipo",
                    "+algorithm.cipo.preset=stream",
                    f"actor_rollout_ref.model.path={model_folder}",
                    "data.filter_overlong_prompts=false",
                    "actor_rollout_ref.rollout.name=vllm",
                    "data.max_prompt_length=40",
                    "data.max_response_length=80",
                    f"actor_rollout_ref.rollout.n={N}",
                    f"actor_rollout_ref.rollout.prompt_length={prompt_length}",
                    "actor_rollout_ref.rollout.response_length=80",
                    *overrides,
                ],
            )

    return made


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    """verl's worker connects to TransferQueue as it is made."""
    monkeypatch.setattr(tq, "init", lambda *_, **__: None)


class Server:
    """Plays verl's client of the engine: names a prompt's colours by turns, in a correction that of the picture.

    long: makes attempts that are no colour and 60 tokens long.
    """

    def __init__(self, tokenizer, *, long=False):
        self.tokenizer, self.long, self.asked = tokenizer, long, []

    async def generate(self, *, prompt_ids, image_data, **_):
        pixel = image_data[0].getpixel((0, 0)) if image_data else None
        color = list(pictures.COLORS)[self.asked.count((prompt_ids, pixel)) % 4]
        self.asked.append((list(prompt_ids), pixel))
        if "<attempt>" in (text := self.tokenizer.decode(prompt_ids)) or "Your answer" in text:
            color = next((name for name, value in pictures.COLORS.items() if value == pixel), "red")
        elif self.long:
            color = "Z" * 60
        return TokenOutput(token_ids=[*self.tokenizer.encode(color), self.tokenizer.eos_token_id])


@pytest.fixture
def store(monkeypatch):
    made = Store()
    for name in FUNCTIONS:
        monkeypatch.setattr(tq, name, getattr(made, name))

    async def compute_score(self, outputs, kwargs):
        text = self.tokenizer.decode(outputs[-1].response_ids, skip_special_tokens=True)
        score = pictures.compute_score("colors", text, kwargs["reward_model"]["ground_truth"])
        outputs[-1].reward_score = score
        outputs[-1].extra_fields["reward_extra_info"] = {"acc": score}

    monkeypatch.setattr(BASE, "_compute_score", compute_score)
    return made


def questions(folder, config, worker, **options):
    path = pictures.write_rows(folder / "rows.parquet", PROMPTS, **options)
    return RLHFDataset(data_files=str(path), tokenizer=worker.tokenizer, config=config.data, processor=worker.processor)


def roll(folder, config, *, steps=1, long=False, **options):
    """The worker, its server, and the statistics of the last step."""
    cipo = CIPOConfig.from_mapping(dict(config.algorithm.cipo))
    actor = AnchorCoordinator(cipo.to_mapping(), train_batch_size=PROMPTS)
    worker = rollouts.CIPOAgentLoopWorker(config, None)
    worker.llm_client = server = Server(worker.tokenizer, long=long)
    data = questions(folder, config, worker, **options)
    # As Ray hands them over: pictures that are loaded. One that still is a file, two sessions cannot load at a time.
    data = [pickle.loads(pickle.dumps(data[i])) for i in range(PROMPTS)]

    async def run():
        for step in range(1, steps + 1):
            uids = [f"s{step}p{i}" for i in range(PROMPTS)]
            await actor.open(step, uids=uids, rho=0.5, step=step)
            ticket = {"coordinator": Remote(actor), "batch": step}
            kwargs = {"agent_name": "single_turn_agent", "global_steps": step, rollouts.TICKET: ticket}
            await asyncio.gather(
                *[
                    worker._run_prompt(
                        {"uid": uid, **data[i], **kwargs},
                        {},
                        {"validate": False, "step": step, "sample_index": i, "rollout_n": 0},
                    )
                    for i, uid in enumerate(uids)
                ]
            )
        return await actor.pop_statistics()

    return worker, server, asyncio.run(asyncio.wait_for(run(), 120))


def corrections(store, *, of=True):
    return {key: row for key, row in store.rows.items() if "_c" in key and len(row["multi_modal_inputs"]) == of * 3}


def pictures_in(worker, ids) -> int:
    return list(ids).count(worker.processor.image_token_id)


@pytest.mark.parametrize("form", ["message", "assistant_turn"])
@pytest.mark.parametrize("schedule", ["streaming", "replay"])
def test_a_correction_sees_the_picture_of_its_attempt(tmp_path, store, config_of, form, schedule):
    config = config_of(f"+algorithm.cipo.schedule={schedule}", f"+algorithm.cipo.prompt.form={form}")
    worker, server, stats = roll(tmp_path, config, steps=2)
    assert stats["anchors/total"] == PROMPTS * (1 if schedule == "replay" else 2)
    made = corrections(store)
    assert len(made) == N * stats["anchors/total"]
    for key, row in made.items():
        assert row["extra_fields"]["cipo"]["correct"], f"{key} answered something else than what its picture shows"
        content = row["raw_prompt"][-1 if form == "message" else 0]["content"]
        assert [part["type"] for part in content] == ["image", "text"] + ["text"] * (form == "message")
        assert pictures_in(worker, row["prompts"]) == pictures.PICTURE_TOKENS
        assert row["multi_modal_inputs"]["pixel_values"].shape[0] == 4 * pictures.PICTURE_TOKENS
        assert row["position_ids"].shape == (4, len(row["input_ids"]))
    assert {pixel for _, pixel in server.asked} == set(pictures.COLORS.values())


@pytest.mark.parametrize("form", ["message", "assistant_turn"])
@pytest.mark.parametrize("kinds", [False, True], ids=["pictures", "some of text alone"])
def test_an_attempt_is_cut_to_what_the_picture_leaves(tmp_path, store, config_of, form, kinds):
    """Never a token too many, and none wasted but the marks'."""
    config = config_of(f"+algorithm.cipo.prompt.form={form}", prompt_length=60)
    worker, _, stats = roll(tmp_path, config, long=True, texts_too=kinds)
    limit = config.actor_rollout_ref.rollout.prompt_length
    assert stats["corrections/failed_sessions"] == 0 and stats["anchors/total"] == PROMPTS
    for shown in (True, False) if kinds else (True,):
        rows = corrections(store, of=shown)
        assert rows
        for row in rows.values():
            assert pictures_in(worker, row["prompts"]) == pictures.PICTURE_TOKENS * shown
            assert limit - 2 <= len(row["prompts"]) <= limit
            assert TAIL_MARK in worker.tokenizer.decode(row["prompts"])


def test_pictures_that_leave_no_room_are_counted(tmp_path, store, config_of):
    config = config_of(prompt_length=45)
    stats = roll(tmp_path, config, long=True)[2]
    assert stats["anchors/skipped/too_long"] == PROMPTS * N and not corrections(store)


def test_an_attempt_cannot_put_a_picture_into_the_prompt(config_of):
    worker = rollouts.CIPOAgentLoopWorker(config_of(), None)
    (message,), why = worker._prompt.build(pictures.chat("red"), "red <|image_pad|>")
    assert why is None and "< |image_pad|>" in message["content"][-1]["text"]
    assert media_tokens(SimpleNamespace(image_token="[IMG]")) == {"[IMG]"}, "special token or not"


def test_options_of_the_processor_decide_what_a_picture_takes(config_of):
    """data.mm_processor_kwargs, as the agent loop hands them on."""
    counted = []
    for options in (
        [],
        [f"+data.mm_processor_kwargs.{name}={pictures.SIDE**2}" for name in ("min_pixels", "max_pixels")],
    ):
        config = config_of(*options)
        worker = rollouts.CIPOAgentLoopWorker(config, None)
        rendering = Rendering.of(config, CIPOConfig(preset="stream"), worker.tokenizer, worker.processor)
        prompt = rendering.encode(pictures.chat("red", side=2 * pictures.SIDE))
        frame = worker._prompt.count_tokens(pictures.chat("red", side=2 * pictures.SIDE))
        assert len(prompt) == frame, "driver and worker count alike"
        counted.append(pictures_in(worker, prompt))
    assert counted == [4 * pictures.PICTURE_TOKENS, pictures.PICTURE_TOKENS]


def test_a_film_takes_the_room_that_the_agent_loop_gives_it(config_of):
    film = {"type": "video", "video": [pictures.picture(color) for color in pictures.COLORS]}
    chat = [{"role": "user", "content": [film, {"type": "text", "text": pictures.QUESTION}]}]
    loop = worker_loop(rollouts.CIPOAgentLoopWorker(config_of(), None))

    def asked(messages):
        media = asyncio.run(loop.process_multi_modal_info(messages))
        return loop.continuous_token_builder.build_initial_tokens(messages, **media)

    plain = asked(chat)
    limit = len(plain) + 45
    worker = rollouts.CIPOAgentLoopWorker(config_of(prompt_length=limit), None)
    messages, reason = worker._prompt.build(chat, "Z" * 60)
    assert reason is None and TAIL_MARK in messages[0]["content"][-1]["text"]
    assert limit - 2 <= len(asked(messages)) <= limit
    film_tokens = [ids.count(worker.processor.video_token_id) for ids in (plain, asked(messages))]
    assert film_tokens[0] == film_tokens[1] > 100, "qwen-vl-utils enlarges small frames"


# ---- rows of the trainer


def grown(store, config, worker, prefix="s1", tools=NO_TOOLS, **knobs):
    cipo = CIPOConfig.from_mapping({**dict(config.algorithm.cipo), **knobs})
    batch = store.meta(*[key for key in store.rows if key.startswith(prefix)])
    rendering = Rendering.of(config, cipo, worker.tokenizer, worker.processor, tools=tools)
    return add_aux_rows(
        batch,
        fetch_table(batch, threshold=lambda _: 0.5),
        **{"config": cipo, "rendering": rendering, "step": 1, "in_stream": True, "norm_by_std": True},
    )


def as_a_session(worker, row) -> tuple[list[int], dict, torch.Tensor]:
    """Prompt, inputs and positions that verl's worker would give a session with this chat and this response."""
    loop = worker_loop(worker)
    media = asyncio.run(loop.process_multi_modal_info(row["raw_prompt"]))
    prompt = loop.continuous_token_builder.build_initial_tokens(row["raw_prompt"], **media)
    ids = torch.cat([torch.tensor(prompt), row["responses"]])
    output = AgentLoopOutput(
        prompt_ids=prompt, response_ids=row["responses"].tolist(), response_mask=[], metrics={}, multi_modal_data=media
    )
    inputs = worker._compute_multi_modal_inputs(output, ids)
    return prompt, inputs, worker._compute_position_ids(ids[None], torch.ones_like(ids)[None], inputs).squeeze(0)


def worker_loop(worker):
    """The agent loop that the worker makes for a session."""

    async def made():
        return SingleTurnAgentLoop(
            trainer_config=DictConfigWrap(worker.config),
            server_manager=None,
            tokenizer=worker.tokenizer,
            processor=worker.processor,
            dataset_cls=worker.dataset_cls,
            data_config=DictConfigWrap(worker.config.data),
            hf_model_type=worker.hf_model_type,
        )

    return asyncio.run(made())


AUX = {"source": "both", "replay_fraction": 4.0, "aux": {"coef": 1.0, "kind": "contrastive"}}
PAIRS = {"source": "paired", "replay_fraction": 4.0, "aux": {"coef": 1.0}}
TRANSFER = {"transfer": {"kind": "regress", "below": 1.0}}


@pytest.mark.parametrize(
    ("schedule", "knobs", "uses"),
    [
        ("streaming", AUX | TRANSFER, {"r", "p", "q"}),
        ("streaming", PAIRS, {"p"}),
        ("replay", TRANSFER, {"q"}),
    ],
    ids=["contrastive, transfer", "pairs", "replay"],
)
@pytest.mark.parametrize("texts_too", [False, True])
def test_an_appended_row_is_what_a_session_with_its_chat_would_be(
    tmp_path, store, config_of, schedule, knobs, uses, texts_too
):
    transfer = [f"+algorithm.cipo.transfer.{name}={value}" for name, value in TRANSFER["transfer"].items()]
    config = config_of(f"+algorithm.cipo.schedule={schedule}", *transfer, prompt_length=200)
    worker, _, _ = roll(tmp_path, config, steps=2, texts_too=texts_too)
    batch, aux = grown(store, config, worker, prefix="s2", **({"transfer": {"kind": "none"}} | knobs))
    assert {use for row in aux.plan.rows for use in "rpq" if use in row.key.group.split("_")[-1]} == uses
    assert not any("no_text_question" in name for name in aux.plan.counts)
    shown = set()
    for new in aux.plan.rows:
        row = store.rows[str(new.key)]
        prompt, inputs, positions = as_a_session(worker, row)
        assert row["prompts"].tolist() == prompt and row["raw_prompt"] == new.messages
        assert row["responses"].tolist() == store.rows[new.source]["responses"].tolist()
        assert set(row["multi_modal_inputs"]) == set(inputs)
        for name, value in inputs.items():
            assert torch.equal(row["multi_modal_inputs"][name], value), name
        assert torch.equal(row["position_ids"], positions)
        shown.add(len(inputs.get("image_grid_thw", ())))
    assert shown - {0}, "no appended row has a picture"


def test_a_pair_of_two_prompts_shows_both_pictures(tmp_path, store, config_of):
    """Of all prompts but one no attempt is right."""
    config = config_of(prompt_length=200)
    worker, _, _ = roll(tmp_path, config)
    for key, row in store.rows.items():
        row["extra_fields"]["cipo"] = {**row["extra_fields"]["cipo"], "correct": key.startswith("s1p0_")}
    _, aux = grown(store, config, worker, **PAIRS)
    adjacent = [store.rows[str(new.key)] for new in aux.plan.rows if len(new.media) == 2]
    assert len(adjacent) == aux.plan.counts["aux/adjacent"] > 0, aux.plan.counts
    for row in adjacent:
        prompt, inputs, positions = as_a_session(worker, row)
        assert row["prompts"].tolist() == prompt and pictures_in(worker, prompt) == 2 * pictures.PICTURE_TOKENS
        assert torch.equal(row["multi_modal_inputs"]["pixel_values"], inputs["pixel_values"])
        assert torch.equal(row["position_ids"], positions)


def test_inputs_that_fit_no_other_row_are_counted(tmp_path, store, config_of):
    """As with models whose processor gives a value for each token."""
    config = config_of(prompt_length=200)
    worker, _, _ = roll(tmp_path, config)
    for row in store.rows.values():
        row["multi_modal_inputs"][next(iter(BOUND))] = torch.zeros(1, len(row["input_ids"]))
    batch, aux = grown(store, config, worker, **AUX, **TRANSFER)
    assert not aux.plan.rows
    assert aux.plan.counts["aux/skipped/no_text_question"] and aux.plan.counts["transfer/skipped/no_text_question"]


def test_pictures_that_a_tool_may_have_shown_go_to_no_other_row(tmp_path, store, config_of):
    config = config_of(prompt_length=200)
    worker, _, _ = roll(tmp_path, config)
    tools = RunTools([{"type": "function", "function": {"name": "draw"}}])
    batch, aux = grown(store, config, worker, tools=tools, **AUX, **TRANSFER)
    assert not aux.plan.rows
    assert aux.plan.counts["aux/skipped/no_text_question"] and aux.plan.counts["transfer/skipped/no_text_question"]


class Engine(FSDPEngineWithLMHead):
    """verl's FSDP engine with its own forward pass, around a model that is not sharded."""

    def __init__(self, model):
        self.module = model
        self.engine_config = SimpleNamespace(entropy_checkpointing=False, entropy_from_logits_with_chunking=False)
        self.ulysses_sequence_parallel_size, self.ulysses_device_mesh, self.use_ulysses_sp = 1, None, False
        self.pad_to_length = False
        self._autocast_dtype = torch.float32
        self.compute_entropy_from_logits = entropy_from_logits


def log_probs(model, rows) -> torch.Tensor:
    """(tokens of all rows,) of the next token, with gradients."""
    nested = {
        name: torch.nested.as_nested_tensor([row[name] for row in rows], layout=torch.jagged)
        for name in ("input_ids", "position_ids")
    }
    inputs = NonTensorStack(*[row["multi_modal_inputs"] for row in rows])
    data = TensorDict({**nested, "multi_modal_inputs": inputs}, batch_size=len(rows))
    tu.assign_non_tensor(data, use_remove_padding=False, temperature=1.0, calculate_entropy=False)
    inputs, more = Engine(model).prepare_model_inputs(data)
    found = Engine(model).prepare_model_outputs(model(**inputs), more, data, None)
    return found["log_probs"].values()


def test_the_engine_trains_attempts_corrections_and_appended_rows_together(tmp_path, store, config_of, model_folder):
    """A micro-batch gives each row what it gives it alone, and the vision tower a gradient."""
    config = config_of(prompt_length=200)
    worker, _, _ = roll(tmp_path, config, texts_too=True)
    batch, aux = grown(store, config, worker, **AUX, **TRANSFER)
    rows = [store.rows[key] for key in batch.keys]
    lengths = np.cumsum([len(row["input_ids"]) for row in rows])[:-1].tolist()
    model = pictures.make_model(worker.tokenizer)
    together = torch.tensor_split(log_probs(model, rows), lengths)
    with torch.no_grad():
        for row, found in zip(rows, together, strict=True):
            # The last token has no next one.
            torch.testing.assert_close(found[:-1], log_probs(model, [row, row])[: len(found) - 1], atol=1e-4, rtol=1e-4)
    appended = together[len(rows) - len(aux.plan.rows) :]
    torch.cat(appended).sum().backward()
    assert model.model.visual.patch_embed.proj.weight.grad.abs().sum() > 0


def test_v0_workers_roll_corrections_out_with_their_pictures(store, config_of, monkeypatch):
    """Attempts and corrections of the V0 trainer are sessions of the same agent loop, in a DataProto."""
    monkeypatch.setattr(AgentLoopWorker, "_compute_score", BASE._compute_score)
    worker = CIPOAgentLoopWorkerV0(config_of(prompt_length=80), None)
    worker.llm_client = server = Server(worker.tokenizer)
    said = Response(0, worker.tokenizer.encode("white"), None)
    material = Material({"raw_prompt": pictures.chat("red"), "index": 0}, said)

    async def run():
        ((sessions, _),) = await worker.build_prompts([material], n=1, step=1, validate=False)
        request = sessions[0].request
        noted = {"shown": request.shown, "context": None}
        assert request.messages[0]["content"][0]["type"] == "image"
        asked = {
            "raw_prompt": objects([pictures.chat("red"), request.messages]),
            "uid": np.array(["p0", "p0_c0"], dtype=object),
            "index": np.array([0, 0]),
            "priority": np.array([0, 1]),
            SESSION: np.array([0, 0]),
            ANCHOR: objects([None, {"correct": False, "prompt_ids": [1], "outcome": None, **noted}]),
            "reward_model": objects([{"ground_truth": "red"}] * 2),
        }
        return await worker.generate_sequences(DataProto(non_tensor_batch=asked, meta_info={"global_steps": 1}))

    rolled = asyncio.run(run())
    assert {pixel for _, pixel in server.asked} == {pictures.COLORS["red"]}
    assert [inputs["pixel_values"].shape[0] for inputs in rolled.non_tensor_batch["multi_modal_inputs"]] == [16, 16]
    assert rolled.batch["position_ids"].shape[:2] == (2, 4) and marks(rolled)[1].correct


def test_the_driver_checks_what_it_did_not_accept_before(tmp_path, config_of):
    config = config_of()
    worker = rollouts.CIPOAgentLoopWorker(config, None)
    cipo = CIPOConfig(preset="stream")
    check_questions(questions(tmp_path, config, worker), cipo)
    check_prompt_length(config, cipo, worker.tokenizer, worker.processor)
