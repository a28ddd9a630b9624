"""The tools of a run, for prompts that the driver renders: it offers those that a row's own prompt does."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig
from verl.tools.tool_registry import load_all_tools
from verl.utils.import_utils import resolve_config_path

from verl_cipo.core.aux_loss.plan import Encode, Tools
from verl_cipo.core.config import CIPOConfig

logger = logging.getLogger("verl_cipo")


@dataclass(frozen=True)
class RunTools:
    """All that a run has; an agent loop may offer a selection of them, or none."""

    all: Tools | None = ()
    """None where they could not be loaded."""

    @classmethod
    def of(cls, rollout: DictConfig, cipo: CIPOConfig) -> "RunTools":
        """Those that the rollout workers load, none where the driver has no use for them; loads their classes, so that
        Ray must be up.

        Where this fails, as it does with a class that can be imported by the workers alone, a warning says so: what the
        driver would have to render is then left out and counted.
        """
        if not (cipo.appends_rows or cipo.nudges):
            return NO_TOOLS
        paths = {name: rollout.multi_turn.get(name) for name in ("tool_config_path", "function_tool_path")}
        try:
            return cls(schemas(load_all_tools(**{k: path and resolve_config_path(path) for k, path in paths.items()})))
        except Exception:
            logger.warning(
                "the tools of %s cannot be loaded in the trainer's process: pairs, and whatever else is trained under "
                "a prompt that no agent loop has rendered, are left out and counted as unknown_tools",
                ", ".join(f"actor_rollout_ref.rollout.multi_turn.{k}={path}" for k, path in paths.items() if path),
                exc_info=True,
            )
            return cls(None)

    def bind(self, inputs: Mapping[str, Any] | None) -> bool:
        """Whether what the model sees of a row's media cannot be given to another row: a tool may have shown some of
        them, which belong to the response."""
        return bool(inputs) and (self.all is None or len(self.all) > 0)

    def offered(self, encode: Encode, messages: list[dict], prompt_ids: Sequence[int], extra_info: Any) -> Tools | None:
        """Those with which ``messages`` are rendered to ``prompt_ids``: those that the row of the data set selects in
        ``extra_info``, all of the run, or none.

        None where that cannot be told: an agent loop of one's own may render a chat as it likes, the second output of a
        session has the first in its prompt, and a chat template that knows the date differs after midnight.
        """
        if not self.all:
            return self.all
        by_name = {tool["function"]["name"]: tool for tool in self.all}
        selected = extra_info.get("tool_selection") if isinstance(extra_info, Mapping) else None
        of_row = [by_name[name] for name in (() if selected is None else selected) if name in by_name]
        candidates = (of_row, self.all, ()) if of_row else (self.all, ())
        return next((tools for tools in candidates if encode(messages, tools) == list(prompt_ids)), None)


NO_TOOLS = RunTools()


def schemas(tools: Iterable[Any]) -> list[dict]:
    """Of tools of verl, as its agent loops give them to the chat template."""
    return [tool.tool_schema.model_dump(exclude_unset=True, exclude_none=True) for tool in tools]
