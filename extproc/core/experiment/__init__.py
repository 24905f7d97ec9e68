"""Experiments on live traffic: two or more strategies side by side, and strategies that only watch.

    spec        what an experiment is: arms, how traffic is split, when it ends
    sequence    confidence intervals that hold however often one looks
    results     what became of an arm's requests
    units       tenants or sessions that count once each
    shadow      a second strategy that is asked and not heeded
    running     one experiment's split, results and guardrail; all of them, as the scheduler sees them

Pure, like all of the core. Several services agree on who is in which arm without a word (a hash), and each
counts the same results from the same records, since a request's arm rides in its ticket. What they do not
share is a refusal, which leaves no record: only the service that refused knows of it.
"""

from __future__ import annotations

from extproc.core.experiment.running import Experiments, Happened
from extproc.core.experiment.spec import Arm, Experiment, Guardrail, ShadowSpec, arm_parameters, shares_of

__all__ = [
    "Arm",
    "Experiment",
    "Experiments",
    "Guardrail",
    "Happened",
    "ShadowSpec",
    "arm_parameters",
    "shares_of",
]
