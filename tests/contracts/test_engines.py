"""verl's training engines: what they hand to a loss, how they scale it, and that nothing else of them is relied on.

The source of every engine is read, not imported: Megatron, VeOmni and the others need packages of their own. With
Megatron-core beside the environment, tests/fast/integration/train/test_engine_conventions.py runs two of them.
"""

import ast
import inspect
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from tests.contracts.support.seams import calls_in_order, check_parameters, load, seam

LOSS, BATCHES = "verl_cipo/integration/train/loss.py", "verl_cipo/integration/train/joint_update.py"
ENGINES = {"fsdp": "dp", "megatron": "megatron", "veomni": "veomni", "torchtitan": "torchtitan"}
"""Those that verl's trainer offers, and what ``model_engine`` calls them."""
WHOLE_BATCH = ("batch_num_tokens", "dp_size")
"""What an engine notes on a mini-batch before it cuts it: all tokens that count, and the ranks they lie on."""


def tree_of(engine: str) -> ast.Module:
    path = Path(load("verl").__file__).parent / "workers" / "engine" / engine / "transformer_impl.py"
    if not path.exists():
        pytest.fail(f"verl has no engine {engine}: {path} is gone")
    return ast.parse(path.read_text())


def function(engine: str, name: str) -> ast.FunctionDef:
    """The longest function of that name in the engine's module: the others are abstract or call it."""
    found = [node for node in ast.walk(tree_of(engine)) if isinstance(node, ast.FunctionDef) and node.name == name]
    if not found:
        pytest.fail(f"verl's {engine} engine has no function {name}")
    return max(found, key=lambda node: node.end_lineno - node.lineno)


def loss_calls(tree: ast.Module) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "loss_function"
    ]


def assigned(engine: str) -> list[str]:
    """Names that ``forward_backward_batch`` notes on batches, in the order of the source."""
    calls = [
        node
        for node in ast.walk(function(engine, "forward_backward_batch"))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "tu.assign_non_tensor"
    ]
    return [keyword.arg for call in sorted(calls, key=lambda call: call.lineno) for keyword in call.keywords]


@seam("engines: forward_step", LOSS)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_loss_gets_model_output_micro_batch_and_ranks_by_keyword(engine):
    calls = loss_calls(tree_of(engine))
    # One for training; an engine that inherits FSDP's has none of its own.
    for call in calls:
        found = sorted(keyword.arg for keyword in call.keywords)
        assert not call.args and found == ["data", "dp_group", "model_output"], (
            f"verl's {engine} engine calls a loss as {ast.unparse(call)}"
        )
    assert calls or engine not in ("fsdp", "megatron"), f"verl's {engine} engine calls no loss_function"


@seam("engines: what a loss returns", LOSS)
@pytest.mark.parametrize("engine", ["fsdp", "megatron"])
def test_a_loss_returns_a_scalar_and_metrics(engine):
    tree = tree_of(engine)
    taken = [
        ast.unparse(node.targets[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and node.value in loss_calls(tree)
    ]
    assert taken == ["(loss, metrics)"], f"verl's {engine} engine takes {taken} from a loss"


@seam("engines: forward_backward_batch", LOSS)
@pytest.mark.parametrize("engine", ENGINES)
def test_the_sizes_of_the_whole_batch_are_noted_before_it_is_cut(engine):
    source = function(engine, "forward_backward_batch")
    names = assigned(engine)
    assert [name for name in names if name in WHOLE_BATCH] == list(WHOLE_BATCH), (
        f"verl's {engine} engine notes {names}: the loss needs {WHOLE_BATCH} of the whole batch"
    )
    text = ast.unparse(source)
    assert text.index("dp_size=self.get_data_parallel_size()") < text.index("prepare_micro_batches("), (
        f"verl's {engine} engine cuts a mini-batch in another way"
    )


@seam("FSDPEngine.forward_backward_batch", LOSS)
def test_fsdp_adds_the_losses_of_micro_batches_up():
    text = ast.unparse(function("fsdp", "forward_backward_batch"))
    assert "loss.backward()" in text and "/ len(micro_batches)" not in text, "FSDP scales the loss of a micro-batch"


@seam("MegatronEngine.postprocess_micro_batch_func", LOSS)
def test_megatron_undoes_its_schedules_division_outside_of_the_loss():
    text = ast.unparse(function("megatron", "postprocess_micro_batch_func"))
    assert "scaled_loss = loss * data['num_micro_batch']" in text, "Megatron's engine scales a loss in another way"
    assert "num_micro_batch" in assigned("megatron")
    # With context parallelism Megatron divides gradients by the tokens of all ranks in place of the micro-batches.
    assert "local_sum = loss * routed_num_tokens / dp_size" in text
    assert "return (scaled_loss, output)" in text and "return (local_sum, local_num_tokens, output)" in text


@seam("engines.utils: shared by all engines", LOSS)
def test_micro_batches_are_cut_and_joined_by_one_function_for_all_engines():
    check_parameters("verl.workers.engine.utils:postprocess_batch_func", ["output_lst", "indices", "data"])
    for engine in ENGINES:
        text = ast.unparse(tree_of(engine))
        for name in ("prepare_micro_batches", "postprocess_batch_func"):
            assert name in text, f"verl's {engine} engine no longer uses {name}"


@seam("TrainingWorker", LOSS)
def test_the_worker_sums_losses_and_joins_metrics_over_ranks():
    worker = "verl.workers.engine_workers:TrainingWorker"
    calls_in_order(f"{worker}.train_batch", "loss_fn", "train_batch", "_postprocess_output")
    source = inspect.getsource(load(f"{worker}._postprocess_output"))
    assert "torch.sum(torch.tensor(output.pop(" in source, "losses of micro-batches are no longer added up"
    metric = load("verl.utils.metric:Metric")
    # Two ranks of two micro-batches: sums are averaged over the ranks.
    ranks = [metric(aggregation="sum", value=value) for value in (1.0, 3.0)]
    for rank, value in zip(ranks, (2.0, 6.0), strict=True):
        rank.append(value)
    assert metric.aggregate_dp(ranks) == (1 + 2 + 3 + 6) / 2


@seam("engines: the packed output of Megatron", LOSS)
def test_megatron_gives_a_loss_nested_log_probs_whether_packed_or_padded():
    """As FSDP does: a row's tokens without padding, which is what no_padding_2_padding takes."""
    path = Path(load("verl").__file__).parent / "models" / "mcore" / "util.py"
    for name in ("postprocess_thd_engine", "postprocess_bshd_engine"):
        text = next(
            ast.unparse(node)
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.FunctionDef) and node.name == name
        )
        assert "torch.nested" in text, f"verl's {name} no longer returns a nested tensor"


@seam("config of all engines", BATCHES, LOSS, "verl_cipo/integration/switch.py")
@pytest.mark.parametrize("model_engine", ENGINES.values())
def test_what_we_read_of_the_config_is_there_for_every_engine(model_engine):
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose(
            "ppo_trainer",
            overrides=[f"model_engine={model_engine}", "actor_rollout_ref.actor.use_dynamic_bsz=true"],
        )
    keys = [
        *(f"actor_rollout_ref.actor.{key}" for key in ("strategy", "ppo_mini_batch_size", "use_dynamic_bsz")),
        *(f"actor_rollout_ref.actor.{key}" for key in ("loss_agg_mode", "use_kl_loss", "policy_loss.loss_mode")),
        *(f"actor_rollout_ref.rollout.{key}" for key in ("n", "prompt_length", "agent", "multi_turn")),
    ]
    assert [key for key in keys if OmegaConf.select(config, key) is None] == []
    for section, key in {
        "actor": "ppo_micro_batch_size_per_gpu",
        "rollout": "log_prob_micro_batch_size_per_gpu",
        "ref": "log_prob_micro_batch_size_per_gpu",
    }.items():
        assert key in config.actor_rollout_ref[section], f"verl's {model_engine} has no {section}.{key}"
    assert config.actor_rollout_ref.ref.log_prob_use_dynamic_bsz is True, "it no longer follows the actor's"


@seam("config of the Megatron engine", "verl_cipo/integration/switch.py")
def test_what_is_refused_of_megatron_has_the_name_that_we_look_at():
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=["model_engine=megatron"])
    megatron = config.actor_rollout_ref.actor.megatron
    assert megatron.virtual_pipeline_model_parallel_size is None
    assert megatron.router_replay.mode == "disabled"
    assert (
        "num_batches_divided_by"
        in inspect.signature(load("verl.workers.engine.utils:prepare_micro_batches")).parameters
    )


@seam("PPOTrainer: LoRA and the reference policy", LOSS)
def test_lora_and_reference_policy_are_the_trainers_business():
    """Log-probabilities of a reference policy reach the loss as a field, whoever computed them."""
    source = inspect.getsource(load("verl.trainer.ppo.v1.trainer_base:PPOTrainer._setup"))
    assert "self.ref_in_actor" in source
    assert '"ref_log_prob" in data' in inspect.getsource(load("verl.workers.utils.losses:ppo_loss"))


@seam("engines: forward_step", "verl_cipo/integration/train/trainer.py")
def test_nothing_of_ours_names_an_engine():
    """One way for all engines; the dry run checks an engine's own options, the CPU platform needs FSDP2."""
    folder = Path(load("verl_cipo").__file__).parent
    own = {"dry_run.py", "cpu/platform.py"}
    for path in [*(folder / "core").rglob("*.py"), *(folder / "integration").rglob("*.py")]:
        code = ast.parse(path.read_text())
        names = {node.id for node in ast.walk(code) if isinstance(node, ast.Name)}
        names |= {node.attr for node in ast.walk(code) if isinstance(node, ast.Attribute)}
        names |= {str(node.module) for node in ast.walk(code) if isinstance(node, ast.ImportFrom)}
        found = sorted(name for name in names if "fsdp" in name.lower() or "megatron" in name.lower())
        assert not found or any(path.match(name) for name in own), f"{path} uses {found}"


@seam("utils.fsdp_utils.CPUOffloadPolicy", "verl_cipo/integration/cpu/platform.py")
def test_a_reference_policy_pins_no_memory_on_the_cpu():
    policy = load("verl.workers.engine.fsdp.transformer_impl:CPUOffloadPolicy")
    assert policy(pin_memory=True).pin_memory is False, "verl gets its offload policy from elsewhere"
    assert "offload_policy = CPUOffloadPolicy(pin_memory=True)" in ast.unparse(function("fsdp", "_build_fsdp_module"))
