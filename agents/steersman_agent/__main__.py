"""`python -m steersman_agent`: the agent without the `steersman` command."""

from extproc.extras import one_line
from steersman_agent.command import command

with one_line():
    command(prog_name="python -m steersman_agent")
