"""Node agents: beside the GPUs, pushing what NVML and the engines say.

Of the rest they import the generated protos, and `extproc.extras`, which knows nothing of it.
"""
