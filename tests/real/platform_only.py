"""Stock verl on a CPU: registers the CPU platform and nothing of CIPO."""

from verl_cipo.integration.cpu import platform as cpu

cpu.register()
