"""python -m verl_cipo.check ARGUMENTS: check a command line of verl.trainer.main_ppo without starting it."""

import sys

from verl_cipo.integration.dry_run import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m verl_cipo.check"))
