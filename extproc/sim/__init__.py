"""A simulated fleet: TGI-compatible replicas with published timings, over a pure scheduler.

Every result is *simulated; timings from splitwise-sim / vidur*, never "TGI measured".
Nothing here knows Steersman's wire, control or decision code: a replica is only what an engine is.
"""
