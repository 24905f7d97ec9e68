"""What two arms' figures come to, in a sentence; and whether one has lost."""

from __future__ import annotations

from extproc.core.experiment.results import ArmResults


def worse_than(
    control_name: str, control: ArmResults, arm: ArmResults, *, alpha: float, worse_by: float
) -> str:
    """Why an arm has lost to the control, or nothing.

    It has when it seems worse by more than `worse_by` and its interval says that it is worse at all.
    """
    low, seems, _ = control.attainment.interval(alpha).minus(arm.attainment.interval(alpha))
    if seems > worse_by and low > 0.0:
        return (
            f"attains {100 * seems:.1f} points less than {control_name} "
            f"(at least {100 * low:.1f}) after {arm.requests} requests"
        )
    low, seems, _ = arm.errors.interval(alpha).minus(control.errors.interval(alpha))
    if seems > worse_by and low > 0.0:
        return (
            f"fails {100 * seems:.1f} points more often than {control_name} "
            f"(at least {100 * low:.1f}) after {arm.requests} requests"
        )
    return ""


def arm_verdict(
    control_name: str,
    name: str,
    control: ArmResults,
    arm: ArmResults,
    *,
    alpha: float,
    stopped: str,
    unit: str,
) -> str:
    """One sentence on an arm against the control."""
    if stopped:
        return f"{name} was stopped: {stopped}."
    ours, its = control.attainment.interval(alpha), arm.attainment.interval(alpha)
    low, _, high = its.minus(ours)
    after = f"after {ours.count} and {its.count} {unit}"
    if low > 0.0:
        by = f"{100 * low:.1f} to {100 * high:.1f} points more"
        return f"{name} is better: it attains {by} than {control_name}, {after}."
    if high < 0.0:
        by = f"{-100 * high:.1f} to {-100 * low:.1f} points less"
        return f"{name} is worse: it attains {by} than {control_name}, {after}."
    if not ours.count or not its.count:
        return f"{name} and {control_name} cannot be compared yet: one of them has no result."
    return (
        f"{name} and {control_name} are not told apart yet: its attainment is between "
        f"{-100 * low:.1f} points below and {100 * high:.1f} points above, {after}."
    )
