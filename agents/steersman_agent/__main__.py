"""`python -m steersman_agent`: the agent without the `steersman` command."""

from steersman_agent.command import command

command(prog_name="python -m steersman_agent")
