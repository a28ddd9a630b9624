"""The settings that a run was started with, as Hydra left them in its folder."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_cipo.evaluation.jsonl import EvaluationError

FOLDERS = (Path("hydra", ".hydra"), Path(".hydra"))
"""Where Hydra writes in a run's folder: with hydra.run.dir=RUN/hydra, as the launch scripts have it, or =RUN."""
_RESPONSE_LENGTH = ("actor_rollout_ref.rollout.response_length", "data.max_response_length")


@dataclass(frozen=True)
class Settings:
    """values: every option by its dotted key, references to others unresolved; given: keys of the command line."""

    values: Mapping[str, Any]
    given: frozenset[str]

    @property
    def corrects(self) -> bool:
        """Whether the knobs of CIPO have an effect."""
        return self.values.get("algorithm.adv_estimator") == "cipo"

    @property
    def response_length(self) -> int | None:
        """Most tokens of a response; None where the config refers to something that is not in it."""
        lengths = (self.values.get(key) for key in _RESPONSE_LENGTH)
        return next((length for length in lengths if isinstance(length, int)), None)


def read_settings(folder: Path) -> Settings | None:
    """Those of the last start of a run; None where Hydra wrote none into its folder.

    Raises: EvaluationError naming a file that is not what Hydra writes.
    """
    files = settings_files(folder)
    if not files:
        return None
    config, overrides = (_read(file, kind) for file, kind in zip(files, (dict, list), strict=True))
    keys = (str(item).partition("=")[0].lstrip("+~") for item in overrides)
    return Settings(dict(leaves(config)), frozenset(keys))


def settings_files(folder: Path) -> list[Path]:
    """The whole config and what the command line gave; empty where Hydra wrote none into a run's folder."""
    pairs = ([folder / place / name for name in ("config.yaml", "overrides.yaml")] for place in FOLDERS)
    return next((pair for pair in pairs if all(file.is_file() for file in pair)), [])


def leaves(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of what is no mapping, or an empty one."""
    for name, inner in value.items():
        key = f"{above}{name}"
        if isinstance(inner, Mapping) and inner:
            yield from leaves(inner, f"{key}.")
        else:
            yield key, inner


def _read(file: Path, kind: type) -> Any:
    # Only runs that have settings need it.
    import yaml

    try:
        # The loader in C, where PyYAML has it, is the faster one.
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (ValueError, yaml.YAMLError) as error:
        raise EvaluationError(f"{file}: not YAML: {error}") from error
    if not isinstance(content, kind):
        raise EvaluationError(f"{file}: holds a {type(content).__name__}, expected Hydra's {kind.__name__}")
    return content
