"""Quotas: what a tenant, a model of it and a key may use, reserved at the decision and settled at the end.

`values` are the words, `books` the exact ones of one process, `share` what a service may do alone, `adjust`
moves limits with their history. The Redis side of the same port is `extproc/state/quota`.
"""

from extproc.core.quota.books import ExactBooks, QuotaBooks, QuotaLimits
from extproc.core.quota.values import (
    ASK,
    NOTHING,
    Account,
    Amounts,
    Ask,
    Bucket,
    Granted,
    LimitUsage,
    RateFigures,
    Refused,
    ScopeLimits,
    limits,
)

__all__ = [
    "ASK",
    "NOTHING",
    "Account",
    "Amounts",
    "Ask",
    "Bucket",
    "ExactBooks",
    "Granted",
    "LimitUsage",
    "QuotaBooks",
    "QuotaLimits",
    "RateFigures",
    "Refused",
    "ScopeLimits",
    "limits",
]
