"""One run in a child: a program, a call of a solution's function, or a data set's test code."""

import atexit
import builtins
import gc
import io
import json
import sys

from verl_cipo.rewards.sandbox.inside.interpreter import (
    BUILTINS,
    RECURSION_LIMIT,
    finish_timers,
    flush,
    fresh_module,
    warm_up,
)
from verl_cipo.rewards.sandbox.inside.values import (
    NotPlainError,
    NoValueError,
    TooDeepError,
    decode,
    encode,
    read_frame,
    write_frame,
)

MAX_NAME_CHARS = 200
MAX_ERROR_BYTES = 2**10
SILENT = (StopIteration, StopAsyncIteration, GeneratorExit)
TYPE_NAME = type.__dict__["__name__"].__get__


def error_claim(error):
    """A claim that names an error: its class, the built-in class that it is, and its arguments where they are plain.

    The class may define its name as it likes, so it is not asked.
    """
    kinds = type(error).__mro__
    kind = next(one for one in kinds if one.__module__ == "builtins" and getattr(builtins, one.__name__, None) is one)
    claim = {"error": TYPE_NAME(kinds[0])[:MAX_NAME_CHARS], "kind": kind.__name__}
    try:
        args = encode(list(error.args))
        return {**claim, "args": args} if len(json.dumps(args)) < MAX_ERROR_BYTES else claim
    except BaseException:
        return claim  # Arguments that are no data, or that misbehave, are left out.


def run_program(job, result_fd):
    """Runs a program that reads stdin and writes stdout, and then does as an interpreter that ends: exit handlers,
    files that are still open are written out, objects go. Returns its exit status."""
    module = fresh_module("__main__")
    status = 0
    try:
        exec(compile(job["code"], "<solution>", "exec"), module.__dict__)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        write_frame(result_fd, error_claim(error))
        status = 1
    finish_timers()
    atexit._run_exitfuncs()
    flush(sys.stdout, sys.__stdout__)
    if "__del__" in job["code"]:
        # Slower, and the names that such a method uses are still there.
        module = None
        sys.modules.pop("__main__", None)
        gc.collect()
    else:
        module.__dict__.clear()
    flush(sys.__stdout__)
    return status


def run_call(job):
    """Defines the solution and calls its function, or Solution's method. Returns the claim: a value or an error."""
    try:
        module = fresh_module("solution")
        exec(compile(job["code"], "<solution>", "exec"), module.__dict__)
        holder = module.__dict__.get("Solution")
        function = getattr(holder() if hasattr(holder, job["name"]) else module, job["name"])
        call = job["call"]
        value = function(*decode(call["args"]), **decode(call["kwargs"]))
    except BaseException as error:
        return error_claim(error)
    try:
        return {"value": encode(value)}
    except NotPlainError:
        return {"error": "NotPlainError"}
    except BaseException as error:
        return error_claim(error)


def run_check(job, job_fd, result_fd):
    """Runs a data set's own test code. The solution is elsewhere: a call of its function asks the verifier.

    With job["constant"] every call gives that value and asks nobody. Returns the verdict; fault: the test failed in a
    way that the solution has no part in; lacks: a name or module that it looked for and did not find.
    """
    n_calls, fault, imitated = 0, None, None

    def ask(*args, **kwargs):
        nonlocal n_calls, fault, imitated
        n_calls += 1
        try:
            call = {"call": {"args": encode(list(args)), "kwargs": encode(kwargs)}}
        except TooDeepError as error:
            raise NoValueError(str(error)) from None  # A value of the solution, handed on.
        except NotPlainError as error:
            fault = f"it calls {job['name']} with {error}"
            raise
        if "constant" in job:
            return decode(job["constant"])
        write_frame(result_fd, call)
        try:
            answer = read_frame(job_fd)
            if answer.keys() == {"value"}:
                return decode(answer["value"])
            imitated = imitation(answer)
        except Exception as error:
            raise NoValueError(f"{job['name']} gave no value") from error
        raise imitated

    module = fresh_module("check")
    module.__dict__[job["name"]] = ask
    passed, lacks = False, None
    try:
        if "numpy" in job["source"]:
            compare_strictly(with_testing="testing" in job["source"])
        exec(compile(job["source"], "<test>", "exec"), module.__dict__)
        passed = not NoValueError.raised
        fault = fault or ("it never calls the solution" if n_calls == 0 else None)
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"[:300]
        # What happens before the first call is not the solution's doing.
        fault = fault or (said if n_calls == 0 else None)
        if isinstance(error, (NameError, ImportError)) and error is not imitated and error.name:
            lacks = {"name": error.name.partition(".")[0][:MAX_NAME_CHARS], "said": said}
    return {"verdict": {"passed": passed, "fault": fault, "lacks": lacks}}


def imitation(answer):
    """The error that an answer names, to be raised in test code. Raises: NoValueError when it names none."""
    kind = getattr(builtins, str(answer.get("kind")), None)
    # Some exceptions mean no error to the code around the call, which then goes on without a value.
    if not (isinstance(kind, type) and issubclass(kind, BaseException)) or issubclass(kind, SILENT):
        raise NoValueError(f"the solution gave {str(answer.get('error'))[:MAX_NAME_CHARS]}")
    error = kind.__new__(kind)
    error.args = tuple(decode(answer.get("args", [])))
    return error


def compare_strictly(*, with_testing):
    """No comparison of an empty array with one that is not empty is true, as numpy has it for allclose([], 1.0).

    with_testing: for the functions of numpy.testing, too, whose import takes long.
    """
    import numpy as np

    def strict(function, otherwise):
        def compare(a, b, *args, **kwargs):
            return otherwise() if (np.size(a) == 0) != (np.size(b) == 0) else function(a, b, *args, **kwargs)

        return compare

    def refuse():
        raise AssertionError("an empty array is compared with one that is not")

    np.allclose = strict(np.allclose, lambda: False)
    np.isclose = strict(np.isclose, lambda: np.zeros(1, bool))
    if with_testing:
        for name in ("assert_allclose", "assert_almost_equal", "assert_array_almost_equal", "assert_array_equal"):
            setattr(np.testing, name, strict(getattr(np.testing, name), refuse))


def run_remotely(job, marker):
    """One run in an interpreter that was started for it alone, by a service that returns stdout and the exit status.

    The claim of a call is the line that starts with `marker`. Returns the exit status.
    """
    warm_up()
    sys.setrecursionlimit(RECURSION_LIMIT)
    if job["kind"] == "program":
        return run_program(job, result_fd=2)
    stdout, sys.stdout = sys.stdout, io.StringIO()
    BUILTINS.update(stdout=sys.stdout)
    claim = run_call(job)
    print(marker + json.dumps(claim), file=stdout, flush=True)
    return 0
