"""Starts verl's own entry point on the CPU and watches it: environment, progress, memory.

Used by the demo, the benchmarks and the tests; nothing here is needed to train on GPUs.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

CPU_ENV = {
    "VERL_PLATFORM": "cpu",
    # Two spinning OpenMP threads with one core busy were 44 times slower than one thread.
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    # TransferQueue wants 8 of them, and warns at every transfer where there are fewer cores.
    "TQ_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_DEDUP_LOGS": "0",
    # vLLM's CPU sampler compiles even under enforce_eager: that takes a C++ compiler and 15 s.
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
MEMORY_SECONDS = 5.0
HOST_LOCK = Path(f"/tmp/verl_cipo-{os.getuid()}.lock")
"""Beside the sockets of verl's weight sync, so that runs with a /tmp of their own do not exclude each other."""


class TrainingFailed(RuntimeError):
    """verl ended with a non-zero exit code; the message holds the end of its log."""


def metrics_lines(path: Path) -> list[dict]:
    """Lines of verl's file logger: ``{"step": int, "data": {name: value}}``.

    Without the file there are none; a line that was cut off in the writing, or is being written, is left out.
    """
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def merge_metrics(kept: Path, fresh: Path) -> None:
    """Move the lines of ``fresh`` behind those of ``kept``, in place of what ``kept`` has from their first step on.

    A run that was killed logged steps after its last checkpoint, which the next one takes again.
    """
    new = metrics_lines(fresh)
    if new:
        old = [line for line in metrics_lines(kept) if line["step"] < new[0]["step"]]
        whole = kept.with_suffix(".tmp")
        whole.write_text("".join(json.dumps(line) + "\n" for line in [*old, *new]))
        whole.replace(kept)
    fresh.unlink(missing_ok=True)


def checkpoint_to_resume(checkpoints: Path, metrics: Path) -> Path | None:
    """The newest whole checkpoint of a step that was logged; None when there is none.

    verl saves a step before it logs it: what was killed in between goes on from the checkpoint before, or the metrics
    would lack a step.
    """
    tracker = checkpoints / "latest_checkpointed_iteration.txt"
    if not tracker.exists():
        return None
    logged = max((line["step"] for line in metrics_lines(metrics) if "training/global_step" in line["data"]), default=0)
    last = min(int(tracker.read_text()), logged)
    saved = {int(folder.name.rpartition("_")[2]): folder for folder in checkpoints.glob("global_step_*")}
    return max(((step, folder) for step, folder in saved.items() if step <= last), default=(0, None))[1]


@contextmanager
def only_run() -> Iterator[None]:
    """One run at a time: verl names its weight sync's socket after Ray's job id, alike in each run's own cluster.

    A process may enter it again: :func:`train` does, and who clears a folder for it first enters it around both.

    Raises:
        TrainingFailed: another process is inside.
    """
    lock = FileLock(HOST_LOCK, is_singleton=True)
    try:
        held = lock.acquire(timeout=0)
    except Timeout as error:
        raise TrainingFailed(
            f"another run is on this machine (it holds {HOST_LOCK}): both would hang at the weight sync. Wait for its "
            'end, or see docs/troubleshooting.md, "A run stands still after some steps"'
        ) from error
    with held:
        yield


_KEEP_CLUSTER = """
import ray, sys
started = ray.init("local", num_cpus=16, num_gpus=1, include_dashboard=False, log_to_driver=False)
print(started.address_info["address"], flush=True)
sys.stdin.read()
"""


@contextmanager
def ray_cluster(log: Path) -> Iterator[str]:
    """A Ray cluster for several runs, one after another; yields its address.

    Its first job is none of them, so they share no socket with a run that starts a cluster itself.

    ``log`` gets what it says.
    """
    # Engines are no processes of Ray: they must go with the actor that started them.
    reap = {"RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper": "true"}
    with FileLock(f"{HOST_LOCK}.cluster"), open(log, "w") as log_file:
        keeper = subprocess.Popen(
            [sys.executable, "-c", _KEEP_CLUSTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            env={**os.environ, **CPU_ENV, **reap},
            text=True,
            start_new_session=True,
        )
        try:
            address = next((line.strip() for line in keeper.stdout), None)
            if address is None:
                raise TrainingFailed(f"no Ray cluster started: {log.read_text(errors='replace')[-2000:]}")
            yield address
        finally:
            _end(keeper)


def _in_cluster(address: str, env: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Options and environment of a run in the cluster at ``address``, whose processes are to have ``env``."""
    options = ["ray_kwargs.ray_init.num_cpus=null", "++ray_kwargs.ray_init.num_gpus=null"]
    options += [f"++ray_kwargs.ray_init.runtime_env.env_vars.{name}='{value}'" for name, value in env.items()]
    # A cluster asks for a token, which its start left in the user's home; who joins it must be told.
    return options, {**env, "RAY_ADDRESS": address, "RAY_AUTH_MODE": "token"}


def train(
    options: list[str],
    *,
    output: Path,
    resume: Path | None = None,
    on_line: Callable[[dict], None] = lambda _: None,
    config_args: tuple[str, ...] = ("--config-path", "pkg://verl_cipo.config", "--config-name", "cpu"),
    env: dict[str, str] | None = None,
    timeout: float | None = None,
    cluster: str | None = None,
) -> int:
    """Run ``python -m verl.trainer.main_ppo`` with ``options`` and wait for it.

    Args:
        options: Hydra overrides.
        output: gets ``metrics.jsonl`` (verl's file logger, a line a step), ``train.log`` and ``hydra/``, the config.
        resume: folder of the checkpoints that the run goes on from; ``metrics.jsonl`` goes on with it, ``train.log``
            starts anew. Where there is no checkpoint, the run starts from step 1.
        on_line: called with each line of verl's file logger as it appears.
        config_args: which config; empty for verl's own.
        env: added to :data:`CPU_ENV`.
        timeout: seconds after which the run is ended.
        cluster: address of a :func:`ray_cluster`; without one the run starts its own, and is the only such run.

    Returns:
        Peak memory of all its processes in MiB, as the sum of proportional set sizes, so that pages which processes
        share count once.

    Raises:
        TrainingFailed: non-zero exit, time-out, or another run on this machine.
    """
    with only_run() if cluster is None else nullcontext():
        return _train(options, output.resolve(), resume, on_line, config_args, env or {}, timeout, cluster)


def _train(options, output, resume, on_line, config_args, env, timeout, cluster) -> int:
    output.mkdir(parents=True, exist_ok=True)
    kept, metrics, log = output / "metrics.jsonl", output / "metrics.part.jsonl", output / "train.log"
    if resume is not None:
        # Of a run whose launcher was killed, too.
        merge_metrics(kept, metrics)
    checkpoint = checkpoint_to_resume(resume.resolve(), kept) if resume is not None else None
    if checkpoint is None:
        kept.unlink(missing_ok=True)
        metrics.unlink(missing_ok=True)
    else:
        options = [
            *options,
            "trainer.resume_mode=resume_path",
            f"trainer.resume_from_path={checkpoint}",
            "trainer.val_before_train=false",
        ]
    # The run's settings, for the report.
    options = ["hydra.run.dir=hydra", "hydra.output_subdir=.hydra", *options]
    env = {"VERL_FILE_LOGGER_PATH": str(metrics), **env}
    if cluster is not None:
        more, env = _in_cluster(cluster, env)
        options = [*options, *more]
    else:
        # A Ray of its own, also where the machine has one.
        env = {"RAY_ADDRESS": "local", **env}
    with open(log, "w") as log_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "verl.trainer.main_ppo", *config_args, *options],
            stdout=log_file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **CPU_ENV, **env},
            cwd=output,  # Hydra writes where it runs
            start_new_session=True,
        )
        memory = _MemoryWatch(process.pid)
        try:
            _follow(process, metrics, on_line, timeout)
        finally:
            _end(process)
            memory.stop()
            merge_metrics(kept, metrics)
    if process.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        raise TrainingFailed(f"verl ended with code {process.returncode}, the end of {log}:\n{tail}")
    return memory.peak_mb


def _follow(process: subprocess.Popen, metrics: Path, on_line: Callable[[dict], None], timeout: float | None) -> None:
    started = time.monotonic()
    seen = 0
    while True:
        ended = process.poll() is not None
        lines = metrics_lines(metrics)
        for line in lines[seen:]:
            on_line(line)
        seen = len(lines)
        if ended:
            return
        if timeout is not None and time.monotonic() - started > timeout:
            raise TrainingFailed(f"verl did not end within {timeout:.0f} s, see {metrics.with_name('train.log')}")
        time.sleep(0.5)


def _session_pids(session: int) -> list[int]:
    pids = []
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == session and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                pids.append(pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return pids


def _end(process: subprocess.Popen) -> None:
    """End the run, then what is left of its session: Ray's processes outlive a driver that was killed."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pid in _session_pids(process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


class _MemoryWatch(threading.Thread):
    """Samples the memory of a process and all its descendants."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.peak_mb = 0
        self._root = psutil.Process(pid)
        self._stopped = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._stopped.wait(MEMORY_SECONDS):
            total = 0
            try:
                for process in [self._root, *self._root.children(recursive=True)]:
                    try:
                        total += process.memory_full_info().pss
                    except (psutil.NoSuchProcess, psutil.ZombieProcess):
                        continue
            except psutil.NoSuchProcess:
                return
            self.peak_mb = max(self.peak_mb, total // 2**20)

    def stop(self) -> None:
        self._stopped.set()
        self.join()
