"""`python -m agents`: the agent without the `steersman` command."""

from agents.command import command

command(prog_name="python -m agents")
