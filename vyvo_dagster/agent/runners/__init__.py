"""Runners: Cog servers started by the agent, as containers or as processes."""

from vyvo_dagster.agent.runners.base import Launcher, Runner, RunnerSpec

__all__ = ["Launcher", "Runner", "RunnerSpec"]
