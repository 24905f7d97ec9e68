"""Studies: many cells, kept as they end, and the report that judges them."""

from __future__ import annotations

from extproc.lab.campaign.case import CampaignRun, CaseError, Played, load_values, seed_values
from extproc.lab.campaign.plan import full_plan, quick_plan
from extproc.lab.campaign.play import play, play_all
from extproc.lab.campaign.streams import SYNTHETIC, TRACES, known_streams

__all__ = [
    "SYNTHETIC",
    "TRACES",
    "CampaignRun",
    "CaseError",
    "Played",
    "full_plan",
    "known_streams",
    "load_values",
    "play",
    "play_all",
    "quick_plan",
    "seed_values",
]
